"""What tests of your own can use."""

from __future__ import annotations

import sys

# So that a failing assertion shows what was compared; it has to be said before the module is imported.
if "pytest" in sys.modules:
    sys.modules["pytest"].register_assert_rewrite(f"{__name__}.stores")
