"""The package can be used without Celery."""

from __future__ import annotations

import pytest


def test_celery_is_blocked() -> None:
    with pytest.raises(ImportError):
        import celery  # noqa: F401


def test_errors_come_without_celery_and_strangers_are_named() -> None:
    import celery_continuations

    assert issubclass(celery_continuations.InvalidStepError, celery_continuations.ContinuationError)
    assert not issubclass(celery_continuations.Interrupt, Exception)
    assert "continuable" in dir(celery_continuations)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        celery_continuations.nonsense
