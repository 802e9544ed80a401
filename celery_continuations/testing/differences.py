"""Describe how two comparable values differ, in a few short lines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from reprlib import Repr
from typing import Any

from celery_continuations.testing.comparable import Parts

__all__ = ["differences"]

_SHOWN = 5
_MISSING: Any = object()

_repr = Repr()
_repr.maxstring = _repr.maxother = 120


def differences(what: str, expected: Any, found: Any) -> list[str]:
    """Describe the first differences between two values from :func:`comparable`; ``what`` names the whole.

    >>> differences("check()", {"rows": [1, 2], "mails": 1}, {"rows": [1, 2, 2], "mails": 1})
    ["check()['rows'][2]: expected nothing, found 2"]
    """
    lines = list(islice(_walk(what, expected, found), _SHOWN + 1))
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], "…"]


def _walk(what: str, expected: Any, found: Any) -> Iterator[str]:
    if expected is not _MISSING and found is not _MISSING:
        if expected == found:
            return
        parts = _parts(expected, found)
        if parts is not None:
            for key, before, after in parts:
                yield from _walk(f"{what}{key}", before, after)
            return
    yield f"{what}: expected {_shown(expected)}, found {_shown(found)}"


def _parts(expected: Any, found: Any) -> list[tuple[str, Any, Any]] | None:
    """Return the parts of two values of one kind: where, expected, found."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return _pairs(expected, found, "[{!r}]")
    if isinstance(expected, Parts) and isinstance(found, Parts) and expected.kind == found.kind:
        return _pairs(expected.parts, found.parts, ".{}")
    if isinstance(expected, set) and isinstance(found, set):
        missing, more = sorted(expected - found, key=repr), sorted(found - expected, key=repr)
        return [*((" member", one, _MISSING) for one in missing), *((" member", _MISSING, one) for one in more)]
    if isinstance(expected, (list, tuple)) and type(expected) is type(found):
        both = range(max(len(expected), len(found)))
        return [(f"[{i}]", _at(expected, i), _at(found, i)) for i in both]
    return None


def _pairs(expected: dict[Any, Any], found: dict[Any, Any], place: str) -> list[tuple[str, Any, Any]]:
    keys = [*expected, *(key for key in found if key not in expected)]
    return [(place.format(key), expected.get(key, _MISSING), found.get(key, _MISSING)) for key in keys]


def _at(values: Any, index: int) -> Any:
    return values[index] if index < len(values) else _MISSING


def _shown(value: Any) -> str:
    return "nothing" if value is _MISSING else _repr.repr(value)
