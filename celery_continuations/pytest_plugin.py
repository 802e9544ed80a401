"""Fixtures for pytest.  The plug-in is loaded in every run, so nothing is imported before a fixture is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_continuations.testing import Rehearsal, Report


@pytest.fixture
def rehearse() -> Callable[..., Rehearsal]:
    """:func:`celery_continuations.testing.rehearse`."""
    from celery_continuations.testing import rehearse

    return rehearse


@pytest.fixture
def assert_resumable() -> Callable[..., Report]:
    """:func:`celery_continuations.testing.assert_resumable`."""
    from celery_continuations.testing import assert_resumable

    return assert_resumable


@pytest.fixture
def continuations() -> Any:
    """The module :mod:`celery_continuations.testing`, with all that it has."""
    from celery_continuations import testing

    return testing
