"""``@continuable``: one decorator that makes a function, or a task, continuable."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

from celery import Task, shared_task
from celery.local import Proxy

from celery_continuations import celery_internals, conf, refusals
from celery_continuations.task import ContinuableTask

__all__ = ["continuable"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S", bound=ContinuableTask)


class MadeTask(Protocol[P, R_co]):
    """What ``@app.task`` makes; Celery's own class is Any to type checkers that have no types of Celery."""

    def run(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the task's body."""

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Send the task."""


class Continuable(Protocol):
    """What ``@continuable`` is, once it has settings."""

    @overload
    def __call__(self, target: Callable[Concatenate[S, P], R], /) -> ContinuableTask[P, R]: ...
    @overload
    def __call__(self, target: MadeTask[P, R], /) -> ContinuableTask[P, R]: ...


@overload
def continuable(target: Callable[Concatenate[S, P], R], /) -> ContinuableTask[P, R]: ...
@overload
def continuable(target: MadeTask[P, R], /) -> ContinuableTask[P, R]: ...
@overload
def continuable(
    *,
    store: str = ...,
    checkpoint_interval: float = ...,
    max_runtime: float | timedelta | Literal["auto"] | None = ...,
    should_interrupt: Callable[[ContinuableTask], Any] | str | None = ...,
    max_resumptions: int | None = ...,
    resume_options: Mapping[str, Any] = ...,
    resume_errors_after_advancing: bool = ...,
    resume_error_countdown: float = ...,
    max_snapshot: int = ...,
    max_crashes: int = ...,
    change_grace: float | timedelta = ...,
    on_change: Literal["fail", "restart"] = ...,
    version: int = ...,
    renamed_steps: Mapping[str, str | None] = ...,
    keep_failed: float | timedelta = ...,
    show_cursors: bool = ...,
) -> Continuable: ...


def continuable(target: Any = None, /, **settings: Any) -> Any:
    """Make a task that stops with its worker and continues on another one.

    Above a plain function, make a bound shared task.  Above a bound Celery task (``@app.task(bind=True)``), make that
    task itself continuable: its name, routes and options are kept, but ``acks_late`` and ``reject_on_worker_lost`` are
    set unless the task itself sets them.

    Args:
        target: the function or task; None if the decorator is called with settings.
        settings: settings of this task, without their prefix, e.g. ``max_resumptions=100``.

    Raises:
        TypeError: for an unbound task, for a function below ``@app.task``, for an async or generator function, for
            an unknown setting.
        ImproperlyConfigured: for a value that is not allowed.

    >>> from celery import Celery
    >>> app = Celery("proj", set_as_current=False)
    >>> @continuable(max_resumptions=100)
    ... @app.task(bind=True)
    ... def import_rows(self, rows):
    ...     for row in self.iterate("import", rows):
    ...         print(row)
    >>> import_rows([1, 2])
    1
    2
    >>> import_rows.continuation_max_resumptions
    100
    """
    attributes = conf.check_arguments(settings, "@continuable")
    if target is None:
        return lambda target: _continuable(target, attributes)
    return _continuable(target, attributes)


def _continuable(target: Any, attributes: dict[str, Any]) -> Any:
    kind = type(target)  # not isinstance, which would evaluate a task that is still a promise
    if issubclass(kind, type) or not callable(target):
        raise TypeError(f"@continuable takes a function or a Celery task, not {target!r}")
    if not issubclass(kind, (Proxy, Task)):
        refusals.refuse_lazy_function(target)
        decorate: Any = shared_task(base=ContinuableTask, bind=True, **attributes)
        return celery_internals.FinishedTask(decorate(target)._get_current_object)
    options = celery_internals.promised_options(target)
    if options is not None and not options.get("bind"):
        raise TypeError(_UNBOUND.format(options.get("name") or "this task"))
    celery_internals.when_evaluated(target, lambda task: _convert(task, options, attributes))
    return target


_UNBOUND = (
    "@continuable needs a bound task, and {} is not: write @app.task(bind=True), "
    "with self as the function's first argument"
)


def _convert(task: Any, options: dict[str, Any] | None, attributes: dict[str, Any]) -> None:
    """Make ContinuableTask a base of the task's own class, which Celery made for this one task."""
    cls = type(task)
    if isinstance(inspect.getattr_static(cls, "run"), staticmethod):
        raise TypeError(_UNBOUND.format(task.name))
    if issubclass(cls, ContinuableTask):
        bases: tuple[type, ...] = (cls,)
    else:
        bases = (ContinuableTask, cls)
        attributes = {**_delivery(task, options), **attributes}
    task.__class__ = type(cls.__name__, bases, {**attributes, "__module__": cls.__module__})
    celery_internals.rewrap_autoretry(task)
    type(task).bind(task.app)


def _delivery(task: Task[..., object], options: dict[str, Any] | None) -> dict[str, Any]:
    """Return the delivery settings that the task itself sets; ContinuableTask's apply otherwise."""
    names = ("acks_late", "reject_on_worker_lost")
    if options is not None:
        return {name: options[name] for name in names if name in options}
    return {
        name: getattr(task, name)
        for name in names
        if getattr(task, name) != conf.celery_setting(task.app, f"task_{name}")
    }
