"""The tasks of which a chain, a group or a chord consists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery.canvas import Signature, maybe_signature

__all__ = ["parts_of", "with_options"]

# What a signature of several tasks keeps them in.
_TASKS = ("tasks", "header", "body")


def parts_of(one: Any) -> Iterator[Signature[Any]]:
    """Yield the signatures of single tasks.

    >>> from celery import Celery, chain, chord, group
    >>> app = Celery(set_as_current=False)
    >>> a, b, c = (app.signature(name) for name in "abc")
    >>> [part.task for part in parts_of(chain(a, chord([b, b], c)))]
    ['a', 'b', 'b', 'c']
    """
    if isinstance(one, (list, tuple)):
        for member in one:
            yield from parts_of(member)
        return
    one = _signature(one)
    if not one.get("subtask_type"):
        yield one
        return
    for key in _TASKS:
        if one.kwargs.get(key) is not None:
            yield from parts_of(_listed(one.kwargs[key]))


def with_options(one: Any, options: dict[str, Any]) -> Any:
    """Return a copy of a signature of which every single task has these options; headers are added to its own."""
    if isinstance(one, (list, tuple)):
        return [with_options(member, options) for member in one]
    one = _signature(one).clone()
    if not one.get("subtask_type"):
        headers = {**(one.options.get("headers") or {}), **options.get("headers", {})}
        return one.set(**{**options, "headers": headers})
    for key in _TASKS:
        if one.kwargs.get(key) is not None:
            one.kwargs[key] = with_options(_listed(one.kwargs[key]), options)
    return one


def _signature(one: Any) -> Any:
    return maybe_signature(one)


def _listed(found: Any) -> Any:
    """Return what a signature keeps: a signature, or a list of them."""
    return found if isinstance(found, (dict, list, tuple)) else list(found)
