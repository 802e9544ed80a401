"""``@continuable``: one decorator that makes a function, or a task, continuable."""

from __future__ import annotations

import inspect
from typing import Any

from celery import Task, shared_task
from celery.local import Proxy

from celery_continuations import celery_internals, conf, refusals
from celery_continuations.task import ContinuableTask

__all__ = ["continuable"]


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
        task = shared_task(base=ContinuableTask, bind=True, **attributes)(target)
        return celery_internals.FinishedTask(task._get_current_object)
    options = celery_internals.promised_options(target)
    if options is not None and not options.get("bind"):
        raise TypeError(_UNBOUND.format(options.get("name") or "this task"))
    celery_internals.when_evaluated(target, lambda task: _convert(task, options, attributes))
    return target


_UNBOUND = (
    "@continuable needs a bound task, and {} is not: write @app.task(bind=True), "
    "with self as the function's first argument"
)


def _convert(task: Task, options: dict[str, Any] | None, attributes: dict[str, Any]) -> None:
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


def _delivery(task: Task, options: dict[str, Any] | None) -> dict[str, Any]:
    """Return the delivery settings that the task itself sets; ContinuableTask's apply otherwise."""
    names = ("acks_late", "reject_on_worker_lost")
    if options is not None:
        return {name: options[name] for name in names if name in options}
    return {
        name: getattr(task, name)
        for name in names
        if getattr(task, name) != conf.celery_setting(task.app, f"task_{name}")
    }
