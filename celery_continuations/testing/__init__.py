"""Helpers for your own tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery_continuations.execution import direct
from celery_continuations.testing.clock import Clock
from celery_continuations.testing.interrupting import interrupt_after_step, interrupt_during_step
from celery_continuations.testing.rehearsal import Rehearsal, rehearse, run_until_done
from celery_continuations.testing.resumable import Report, UntriedWarning, assert_resumable

__all__ = [
    "Clock",
    "Rehearsal",
    "Report",
    "UntriedWarning",
    "assert_resumable",
    "delivered",
    "interrupt_after_step",
    "interrupt_during_step",
    "rehearse",
    "run_until_done",
]

# So that a failing assertion shows what was compared; it must be registered before the module is imported.
if "pytest" in sys.modules:
    sys.modules["pytest"].register_assert_rewrite(f"{__name__}.sources", f"{__name__}.stores")


@contextmanager
def delivered(**payloads: Any) -> Iterator[None]:
    """Deliver payloads, within the block, to the waits of tasks that are called directly.

    >>> with delivered(approval="yes"):
    ...     pass  # publish() calls self.wait_for("approval"), which returns "yes"
    """
    token = direct.delivered.set({**direct.delivered.get(), **payloads})
    try:
        yield
    finally:
        direct.delivered.reset(token)
