"""Long-running Celery tasks that stop cleanly on shutdown and resume where they left off."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_continuations.control import deliver
    from celery_continuations.decorator import continuable
    from celery_continuations.exceptions import (
        CallbackError,
        CheckpointError,
        ChildError,
        ContinuationError,
        CrashLoopError,
        DeliveryError,
        ErrorBudgetError,
        Interrupt,
        Interrupted,
        InvalidStepError,
        RememberedError,
        ResumeLimitError,
        SnapshotTooLargeError,
        SourceChangedError,
        StoreError,
        TooLateError,
        UnadvanceableCursorError,
        UnserializableValueError,
        WaitTimeout,
    )
    from celery_continuations.result import ContinuableAsyncResult
    from celery_continuations.task import AppTask, ContinuableTask

__version__ = "0.2.0"

__all__ = [
    "AppTask",
    "CallbackError",
    "CheckpointError",
    "ChildError",
    "ContinuableAsyncResult",
    "ContinuableTask",
    "ContinuationError",
    "CrashLoopError",
    "DeliveryError",
    "ErrorBudgetError",
    "Interrupt",
    "Interrupted",
    "InvalidStepError",
    "RememberedError",
    "ResumeLimitError",
    "SnapshotTooLargeError",
    "SourceChangedError",
    "StoreError",
    "TooLateError",
    "UnadvanceableCursorError",
    "UnserializableValueError",
    "WaitTimeout",
    "__version__",
    "continuable",
    "deliver",
]

# Public names are imported when they are first used (PEP 562), so that the core
# can be used, and a pytest plug-in loaded, without importing Celery.  Type checkers
# see the imports above: with this function they would take any name for a public one.
if not TYPE_CHECKING:
    # Each of them imports those before it.
    _MODULES = ("exceptions", "control", "result", "task", "decorator")

    def __getattr__(name: str) -> Any:
        if name in __all__:
            for module in _MODULES:
                found = vars(import_module(f"{__name__}.{module}"))
                if name in found:
                    return found[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
