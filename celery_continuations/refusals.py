"""Checks on a task's class, its function and its return value."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

__all__ = ["refuse_lazy_function", "refuse_unbound", "refuse_unrun", "warn_of_overrides"]

_RUN_IT = "Write a plain function (def) that runs the coroutine, e.g. with asyncio.run()"
_LOOP = "Write a plain function (def, without yield) that does its work in a loop and returns a value"

_LAZY = (
    (inspect.iscoroutinefunction, "an async function", _RUN_IT),
    (inspect.isasyncgenfunction, "an async generator function", _RUN_IT),
    (inspect.isgeneratorfunction, "a generator function", _LOOP),
)
_UNRUN: dict[type[Any], str] = {
    CoroutineType: "a coroutine",
    AsyncGeneratorType: "an async generator",
    GeneratorType: "a generator",
}


def refuse_lazy_function(function: Callable[..., Any]) -> None:
    """Refuse a task's function whose call would only return a coroutine or a generator.

    Only the function itself is checked, not one that it wraps: a plain function around an async one is accepted.

    Raises:
        TypeError: for an async function, an async generator function and a generator function.
    """
    for is_lazy, kind, advice in _LAZY:
        if is_lazy(function):
            raise TypeError(
                f"task function {_name_of(function)} is {kind}, whose body Celery would never run. {advice}"
            )


def refuse_unbound(cls: type[Any], app: Any, continuable: type[Any]) -> None:
    """Refuse an unbound task that was given ``continuable``, or a subclass of it, as its base.

    If the app has such a class for all of its tasks, a task without steps needs no ``self``.

    Args:
        cls: the unbound task's class, below ``continuable``.
        app: the app that made it.
        continuable: the class for tasks with steps.

    Raises:
        TypeError: when the base was not the app's own.
    """
    if issubclass(app.Task, continuable) and issubclass(cls, app.Task):
        return
    base = cls.__bases__[0].__name__
    raise TypeError(
        f"task {cls.name} has base={base} but is not bound, so its function has no self to call steps on. "
        f"Write @app.task(base={base}, bind=True), with self as the function's first argument"
    )


def refuse_unrun(task: Any, value: Any) -> None:
    """Refuse a return value that shows that the task's body never ran.

    A plain function may return the coroutine or generator of a function that it wraps. A coroutine is closed, so
    Python does not warn that it was never awaited.

    Raises:
        TypeError: for a coroutine, a generator and an async generator.
    """
    what = _UNRUN.get(type(value))
    if what is None:
        return
    if type(value) is CoroutineType:
        value.close()
    advice = _LOOP if type(value) is GeneratorType else _RUN_IT
    raise TypeError(
        f"task {task.name} returned {what}, {value.__qualname__}, which Celery does not run: its body never ran. "
        f"{advice}"
    )


def warn_of_overrides(cls: type[Any], base: type[Any], names: Iterable[str]) -> None:
    """Warn when a task class hides a public name of ``base`` behind an attribute of another kind.

    A method or property that a task class defines counts as intended. A class that inherits the attribute from
    another task class does not warn again.

    Args:
        cls: the class that is being made.
        base: the class that the names belong to.
        names: the public names.
    """
    for name in names:
        owner = next(owner for owner in cls.__mro__ if name in vars(owner))
        found = vars(owner)[name]
        if (issubclass(owner, base) or owner in base.__mro__) and hasattr(type(found), "__get__"):
            continue
        if any(issubclass(one, base) and inspect.getattr_static(one, name) is found for one in cls.__bases__):
            continue
        where = "" if owner is cls else f", inherited from {_name_of(owner)},"
        warnings.warn(
            f"attribute {name!r} of task class {_name_of(cls)}{where} hides {base.__name__}.{name}, which the task "
            "can no longer use. Give the attribute another name",
            UserWarning,
            stacklevel=3,
        )


def _name_of(named: Any) -> str:
    qualname = getattr(named, "__qualname__", None) or repr(named)
    return f"{named.__module__}.{qualname}"
