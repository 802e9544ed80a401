"""Long-running Celery tasks that stop cleanly on shutdown and resume where they left off."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

# Public names are imported when they are first used (PEP 562), so that the core
# can be used, and a pytest plug-in loaded, without importing Celery.
_MODULES = {
    "exceptions": (
        "CallbackError",
        "CheckpointError",
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
        "UnadvanceableCursorError",
        "UnserializableValueError",
        "WaitTimeout",
    ),
    "task": ("AppTask", "ContinuableTask"),
    "decorator": ("continuable",),
    "result": ("ContinuableAsyncResult",),
    "control": ("deliver",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "__version__",
    *_HOME,
]


def __getattr__(name: str) -> Any:
    try:
        module = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
