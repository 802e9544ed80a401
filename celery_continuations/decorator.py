"""``@continuable``: one decorator that makes a function, or a task, continuable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery, Task, shared_task
from celery.local import Proxy

from celery_continuations import conf, seams
from celery_continuations.task import ContinuableTask

__all__ = ["continuable"]


def continuable(target: Any = None, /, **settings: Any) -> Any:
    """Make a task that stops when its worker does, and goes on elsewhere.

    On a plain function it makes a shared task, bound.  On a bound Celery task (above
    ``@app.task(bind=True)``) it makes that very task continuable; its name, routes and options
    are kept, except that a task for which ``acks_late`` and ``reject_on_worker_lost`` were left
    to the app gets both.

    Args:
        target: the function or task; none when the decorator is given settings.
        settings: settings of this task, without their prefix, e.g. ``max_resumptions=100``.

    Raises:
        TypeError: for an unbound task, for a function below ``@app.task``, for an unknown setting.
        ImproperlyConfigured: for a value that is not allowed.

    >>> from celery import Celery
    >>> app = Celery("proj", set_as_current=False)
    >>> @continuable(max_resumptions=100)
    ... @app.task(bind=True)
    ... def import_rows(self, rows):
    ...     return [row for row in self.iterate("import", rows)]
    >>> import_rows([1, 2])
    [1, 2]
    >>> import_rows.continuation_max_resumptions
    100
    """
    attributes = conf.check_arguments(settings, "@continuable")
    if target is None:
        return lambda target: _continuable(target, attributes)
    return _continuable(target, attributes)


def _continuable(target: Any, attributes: dict[str, Any]) -> Any:
    if isinstance(target, type) or not callable(target):
        raise TypeError(f"@continuable goes on a function or a Celery task, not on {target!r}")
    if type(target) is not Proxy and not issubclass(type(target), (Proxy, Task)):
        return _shared(target, attributes)
    seams.when_evaluated(target, lambda task: _convert(task, attributes))
    return target


def _shared(function: Callable[..., Any], attributes: dict[str, Any]) -> Any:
    class Below(ContinuableTask):
        """Refuses to be the function of another task decorator."""

        abstract = True

    task = shared_task(base=ContinuableTask, bind=True, **attributes)(function)
    return task


def _convert(task: Task, attributes: dict[str, Any]) -> None:
    """Put ContinuableTask above the task's own class, which Celery made for this one task."""
    cls = type(task)
    if not isinstance(task.__wrapped__, type(_continuable)) or isinstance(
        cls.__dict__.get("run"), staticmethod
    ):
        raise TypeError(
            f"@continuable needs a bound task, and {task.name} is not: write @app.task(bind=True), and "
            "self as the first argument of the function"
        )
    app: Celery = task.app
    delivery = {
        name: getattr(cls, name)
        for name in ("acks_late", "reject_on_worker_lost")
        if getattr(cls, name) != app.conf[f"task_{name}"]
    }
    bases = (cls,) if issubclass(cls, ContinuableTask) else (ContinuableTask, cls)
    task.__class__ = type(cls.__name__, bases, {**delivery, **attributes, "__module__": cls.__module__})
    if "_orig_run" in vars(task):
        # autoretry_for keeps the method it wraps: from now on that is the new class's
        task._orig_run = type(task).run.__get__(task)
    type(task).bind(app)
