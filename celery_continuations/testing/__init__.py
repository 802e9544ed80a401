"""What tests of your own can use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery_continuations import direct

__all__ = ["delivered"]

# So that a failing assertion shows what was compared; it has to be said before the module is imported.
if "pytest" in sys.modules:
    sys.modules["pytest"].register_assert_rewrite(f"{__name__}.stores")


@contextmanager
def delivered(**payloads: Any) -> Iterator[None]:
    """Within the block, tasks that are called directly find these payloads at their waits, by name.

    >>> with delivered(approval="yes"):
    ...     pass  # publish() calls self.wait_for("approval"), which returns "yes"
    """
    token = direct.delivered.set({**direct.delivered.get(), **payloads})
    try:
        yield
    finally:
        direct.delivered.reset(token)
