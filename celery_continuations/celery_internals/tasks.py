"""Of tasks, apps, settings and result backends."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from celery import _state
from celery.app import utils as celery_settings
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.exceptions import Ignore, TaskPredicate
from celery.local import PromiseProxy, Proxy
from kombu.serialization import registry  # type: ignore[attr-defined]

__all__ = [
    "FinishedTask",
    "app_of_unbound",
    "chord_claim_left",
    "counts_in_chords_once",
    "error_in",
    "forget_cached",
    "heard_late",
    "ignore_result_of",
    "is_predicate",
    "is_replacement",
    "keeps_results",
    "mask_in_reports",
    "on_every_app",
    "promised_options",
    "rewrap_autoretry",
    "serializer_of",
    "when_evaluated",
]


def forget_cached(result: Any) -> None:
    """Make a result ask its backend again.  Why: it caches the state of a task that has ended.

    It also remembers that it has seen the end: with a backend that pushes results, ``get()`` would return nothing
    immediately.
    """
    result._cache = None
    result.on_ready = type(result.on_ready)(result._on_fulfilled, weak=True)


def heard_late(result: Any) -> bool:
    """Whether the end that a result has received was withdrawn since, or followed by another one.

    Why: a backend that pushes results (Redis) delivers a result by reading and by a push. If reading was faster, the
    push stays in the connection, and the next ``get()`` of the same task takes it for new. Therefore such a backend is
    asked again. A result that has expired was not withdrawn.
    """
    backend, heard = result.backend, result._cache
    if not heard or not getattr(backend, "is_async", False) or not keeps_results(backend):
        return False
    now = backend.get_task_meta(result.id)
    return "task_id" in now and any(now.get(key) != heard.get(key) for key in ("status", "date_done"))


def keeps_results(backend: Any) -> bool:
    """Whether any process can learn the state of a task from a result backend.

    Why: the backend of an app without one claims to be persistent, and RPC keeps results for one caller only.
    """
    return not isinstance(backend, (DisabledBackend, RPCBackend))


def counts_in_chords_once(backend: Any) -> bool:
    """Whether a chord counts a member once, no matter how often its result is stored.

    Why: for ordered chords, the default, the Redis backend keeps a set of results by their index
    (celery/backends/redis.py).
    """
    return bool(getattr(backend, "_chord_zset", False))


def chord_claim_left(backend: Any, group: str) -> float:
    """Return the seconds for which one process, alive or dead, has claimed a chord's body; 0 without a claim.

    Why: since 5.7 the process that counts the last member claims the body in the Redis backend, for at least 5 s. A
    process that counts that member again meanwhile calls nothing (CHORD_PART_RETURN_LUA in celery/backends/redis.py).
    """
    if not counts_in_chords_once(backend):
        return 0.0
    key = backend.get_key_for_group(group, ".c")
    if backend.client.get(key) in (None, b"done", "done"):
        return 0.0
    return max(0, int(backend.client.pttl(key))) / 1000


def mask_in_reports(mask: Callable[[str, Any], Any]) -> None:
    """Show ``mask(name, value)`` of each setting in ``celery report`` and ``inspect conf``.

    Why: Celery finds secrets by the names of settings alone, and masks URLs only in settings of its own
    (celery/app/utils.py).
    """
    original = celery_settings.filter_hidden_settings

    @functools.wraps(original)
    def filter_hidden_settings(conf: Any) -> dict[str, Any]:
        return {name: mask(name, value) if isinstance(name, str) else value for name, value in original(conf).items()}

    celery_settings.filter_hidden_settings = filter_hidden_settings


def is_predicate(error: BaseException) -> bool:
    """Whether ``error`` is Celery's Retry, Ignore or Reject.  Why: their base has no public name."""
    return isinstance(error, TaskPredicate)


def is_replacement(error: Any) -> bool:
    """Whether ``error`` ends a task that another one replaces.  Why: ``Task.replace`` raises an ordinary Ignore."""
    return isinstance(error, Ignore) and error.args == ("Replaced by new task",)


def ignore_result_of(task: Any, request: Any) -> bool:
    """Return the effective ``ignore_result``: the message's if it has one, else the task's.

    Why: ``Context`` has a class attribute of that name, so only the instance's dict shows the message's value.  Celery
    has a function for it only since 5.6.
    """
    own = vars(request).get("ignore_result")
    return bool(task.ignore_result if own is None else own)


def serializer_of(content_type: str | None) -> str | None:
    """Return the name of the serializer for a content type.  Why: kombu looks serializers up by name only."""
    name = registry.type_to_name.get(content_type)
    return str(name) if name else None


def promised_options(task: Any) -> dict[str, Any] | None:
    """Return the options given to an ``@app.task`` that is still a promise, or None for any other task.

    Why: once the task is made, an omitted option looks like a given one.
    """
    if type(task) is not PromiseProxy or task.__evaluated__():
        return None
    options: dict[str, Any] = object.__getattribute__(task, "_Proxy__kwargs")
    return options


def app_of_unbound(cls: type[Any]) -> Any:
    """Return the app that made ``cls`` of a function without ``bind=True``, or None for any other class.

    Why: ``bind=True`` leaves no attribute; only the decorator's classes have their own ``_decorated`` and ``app``, and
    a static ``run`` when unbound (celery/app/base.py, _task_from_fun).
    """
    made = vars(cls)
    return made["app"] if "_decorated" in made and isinstance(made["run"], staticmethod) else None


class FinishedTask(Proxy):  # type: ignore[type-arg]
    """A shared task that raises when ``@app.task`` or ``@shared_task`` is put above it.

    Why: Celery would take it for a function, and use or replace the task depending on names.  It reads ``__name__`` and
    ``__doc__`` of what it decorates (celery/app/base.py).
    """

    __slots__ = ()

    @property
    def __doc__(self) -> Any:  # type: ignore[override]
        return self._unless_decorated().__doc__

    @property
    def __name__(self) -> Any:
        return self._unless_decorated().__name__

    def _unless_decorated(self) -> Any:
        if sys._getframe(2).f_globals.get("__name__") == "celery.app.base":
            raise TypeError("@continuable is below a task decorator; write it above @app.task(bind=True), or alone")
        return self._get_current_object()


def when_evaluated(task: Any, func: Callable[[Any], None]) -> None:
    """Call ``func`` with a task that ``@app.task`` has promised, as soon as it is made.

    Why: evaluating the promise earlier would finalize the app's configuration at import time.
    """
    kind = type(task)
    if kind is PromiseProxy:
        task.__then__(lambda: func(task._get_current_object()))
    elif kind is Proxy:

        def on_finalize(app: Any) -> None:
            app.on_after_finalize.connect(lambda **_: func(app.tasks[task.name]), weak=False)

        on_every_app(on_finalize, lambda app: func(app.tasks[task.name]))
    else:
        func(task)


def error_in(result: object) -> BaseException | None:
    """Return the error in what Celery passes on for a task that has failed, or None.

    Why: it is wrapped twice, so that it can be pickled with its traceback (billiard/einfo.py).
    """
    error = getattr(result, "exception", result)
    error = getattr(error, "exc", error)
    return error if isinstance(error, BaseException) else None


def rewrap_autoretry(task: Any) -> None:
    """Let ``autoretry_for`` wrap the method that the task's class has now.

    Why: it keeps the method it found when the task was made (celery/app/autoretry.py).
    """
    if "_orig_run" in vars(task):
        task._orig_run = type(task).run.__get__(task)


def on_every_app(when_finalizing: Callable[[Any], None], when_finalized: Callable[[Any], None]) -> None:
    """Call a function with every app, including future ones.  Why: shared tasks have no other hook."""
    _state.connect_on_app_finalize(when_finalizing)
    for app in list(_state._get_active_apps()):  # type: ignore[attr-defined]
        if app.finalized:
            when_finalized(app)
