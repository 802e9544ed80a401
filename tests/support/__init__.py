"""What tests of several kinds share."""

import pkgutil

import pytest

# Their assertions too say what was compared.
for module in pkgutil.iter_modules(__path__):
    pytest.register_assert_rewrite(f"{__name__}.{module.name}")
