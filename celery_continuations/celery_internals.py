"""All uses of Celery, kombu and billiard beyond their public interface.

Each is here with its reason, and has a test that fails when it changes.
"""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from billiard import common as billiard_common
from billiard import pool as billiard_pool
from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]
from billiard.exceptions import Terminated
from billiard.process import BaseProcess, current_process
from celery import _state
from celery.app import utils as celery_settings
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.exceptions import Ignore, TaskPredicate, WorkerLostError
from celery.local import PromiseProxy, Proxy
from kombu.serialization import registry  # type: ignore[attr-defined]
from kombu.utils.functional import maybe_list

__all__ = [
    "SOFT_LIMIT",
    "FinishedTask",
    "app_of_unbound",
    "around_soft_shutdown",
    "chord_claim_left",
    "counts_in_chords_once",
    "error_in",
    "forget_cached",
    "forget_consumer_cancellation",
    "heard_late",
    "ignore_result_of",
    "in_pool_child",
    "is_lost_process",
    "is_predicate",
    "is_replacement",
    "is_stored_as_failure",
    "is_unsendable",
    "keeps_results",
    "mask_in_reports",
    "on_every_app",
    "pool_pids",
    "promised_options",
    "read_all_results",
    "rewrap_autoretry",
    "serializer_of",
    "take_over_revoke",
    "terminate_signal",
    "unflag_revoked",
    "unwrapped",
    "when_evaluated",
]

#: The signal of a soft time limit to a pool child.  Why: Celery has no public name for it.
SOFT_LIMIT = int(billiard_pool.SIG_SOFT_TIMEOUT or signal.SIGTERM)

# Seconds between two looks at the pipes of a stopping pool.
_PAUSE = 0.02


def around_soft_shutdown(worker: Any, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call ``before`` and ``after`` around the worker's ``wait_for_soft_shutdown``.

    Why: a cold shutdown calls it first (celery/apps/worker.py, on_cold_shutdown), even if the timeout is 0, and sends
    the signal ``worker_shutting_down`` only after the tasks are dead.
    """
    original = worker.wait_for_soft_shutdown

    def wait_for_soft_shutdown(*args: Any, **kwargs: Any) -> Any:
        before()
        if forget_consumer_cancellation(worker):
            return None
        try:
            return original(*args, **kwargs)
        finally:
            after()

    worker.wait_for_soft_shutdown = wait_for_soft_shutdown


def forget_consumer_cancellation(worker: Any) -> bool:
    """Keep a cold shutdown from raising inside the task on the solo pool; return whether the pool is solo.

    Why: there the signal's handler runs on top of the task's own frame, and cancelling its request raises
    NotImplementedError in the middle of the task's code.
    """
    from celery.concurrency import solo

    if not issubclass(worker.pool_cls, solo.TaskPool):
        return False
    for name in _CANCELLATIONS:
        setattr(worker.consumer, name, lambda: None)
    return True


# The second until Celery 5.5, the first since 5.6.
_CANCELLATIONS = ("cancel_active_requests", "cancel_all_unacked_requests")


#: Called with a worker's hostname, the ids of tasks that were revoked, and what Celery itself does for those that it is
#: called with; returns whether it will handle them.
Revoke = Callable[[str, "set[str]", Callable[["set[str]"], None]], bool]


def take_over_revoke(handle: Revoke, is_ours: Callable[[Any], bool]) -> None:
    """Let ``handle`` decide what the remote control command ``revoke`` does, once in each process.

    Celery's own code handles the requests of this worker whose task is not ``is_ours``, and those that it terminates.

    Why: since 5.7 every worker immediately stores REVOKED for a task that it does not run itself, even if the task runs
    in another worker, or waits without a message.  Workers that start later know nothing of it, and run the task
    (celery/worker/control.py, _revoke).
    """
    from celery.worker import state as worker_state
    from celery.worker.control import Panel

    original = Panel.data["revoke"]
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **kwargs: Any) -> Any:
        ids = {str(one) for one in maybe_list(task_id) or ()}
        own = set()
        for request in filter(None, map(worker_state.requests.get, ids)):
            if not is_ours(request.task) or (terminate and request in worker_state.active_requests):
                own.add(request.id)

        def of_celery(others: set[str]) -> None:
            state.consumer.call_soon(original, state, others)

        worker_state.revoked.update(ids - own)  # immediately, as Celery does: their messages may come now
        if ids == own or not handle(state.hostname, ids - own, of_celery):
            return original(state, ids, terminate=terminate, signal=signal, **kwargs)
        if own:
            return original(state, own, terminate=terminate, signal=signal, **kwargs)
        return {"ok": "terminate: tasks unknown" if terminate else f"tasks {ids} flagged as revoked"}

    @functools.wraps(Panel.data["terminate"])
    def terminate(state: Any, signal: Any, task_id: Any, **kwargs: Any) -> Any:
        return revoke(state, task_id, terminate=True, signal=signal)

    Panel.data.update(revoke=revoke, terminate=terminate)


def unflag_revoked(task_id: str) -> None:
    """Let this worker accept messages of a task again.  Why: Celery has no command that takes a ``revoke`` back."""
    from celery.worker import state as worker_state

    while True:
        try:
            return worker_state.revoked.discard(task_id)
        except RuntimeError:  # the main thread has changed the set meanwhile
            continue


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


def in_pool_child() -> bool:
    """Whether this process is a child of a prefork pool.  Why: Celery has no public test for it."""
    return bool(current_process()._name != "MainProcess")  # type: ignore[attr-defined]


def pool_pids(worker: Any) -> list[int]:
    """Return the pids of a prefork pool's processes; none for other pools, or while it starts.

    Why: Celery reports them only in the reply to a remote control command, and notices a death itself only after 5 to
    10 seconds if its broker has no event loop.
    """
    pool = getattr(getattr(worker, "pool", None), "_pool", None)
    processes = [one for one in list(getattr(pool, "_pool", None) or ()) if isinstance(one, BaseProcess)]
    return [process.pid for process in processes if process.pid is not None]


def read_all_results(worker: Any) -> None:
    """Let a stopping prefork worker read the results of its processes until the last of them has exited.

    Why: Celery reads only while it knows of a job.  When its consumer closes, it gives up each job whose acceptance it
    has not read yet, though a process is running it (celery/concurrency/asynpool.py, flush).  That process then waits
    for 30 s for its result to be read (billiard/pool.py, _ensure_messages_consumed).
    """
    handler: Any = getattr(getattr(worker.pool, "_pool", None), "_result_handler", None)
    if hasattr(handler, "fileno_to_outq"):  # a prefork pool with an event loop
        handler.on_stop_not_started = lambda: _read_until_exit(handler)


def _read_until_exit(handler: Any) -> None:
    ended: set[int] = set()
    while handler._state != billiard_pool.TERMINATE:
        if handler.check_timeouts is not None:
            handler.check_timeouts()
        readable = [fd for fd, process in handler.fileno_to_outq.items() if fd not in ended and _has_result(process)]
        for fd in readable:
            handler._flush_outqueue(fd, ended.add, handler.fileno_to_outq, handler.on_state_change)
        try:
            handler.join_exited_workers(shutdown=True)
        except billiard_pool.WorkersJoined:
            return
        if not readable:
            time.sleep(_PAUSE)


def _has_result(process: Any) -> bool:
    try:
        return bool(process.outq._reader.poll(0))
    except OSError:  # its pipe is closed: it has exited
        return False


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


def terminate_signal() -> int:
    """Return the signal that ends a pool child: SIGTERM, or the one in REMAP_SIGTERM.

    Why: billiard reads the variable once, and the two must agree.
    """
    return int(getattr(billiard_common, "TERM_SIGNAL", signal.SIGTERM))


def is_lost_process(error: BaseException) -> bool:
    """Whether a task failed because its process has ended.

    Why: since 4.3 billiard reports the exit of a process as the wrapped SystemExit itself.
    """
    return isinstance(unwrapped(error), (WorkerLostError, SystemExit))


def is_predicate(error: BaseException) -> bool:
    """Whether ``error`` is Celery's Retry, Ignore or Reject.  Why: their base has no public name."""
    return isinstance(error, TaskPredicate)


def is_replacement(error: Any) -> bool:
    """Whether ``error`` ends a task that another one replaces.  Why: ``Task.replace`` raises an ordinary Ignore."""
    return isinstance(error, Ignore) and error.args == ("Replaced by new task",)


def is_stored_as_failure(error: BaseException) -> bool:
    """Whether a main process stores FAILURE for an error that the task's process did not report itself.

    Why: the rest of ``Request.on_failure`` revokes, gives the message back, or ends the worker
    (celery/worker/request.py).
    """
    return not isinstance(unwrapped(error), (Terminated, MemoryError, TaskPredicate))


def is_unsendable(error: BaseException) -> bool:
    """Whether a task's process has ended the task, and could not send its result to the main process.

    Why: billiard sends this instead (billiard/pool.py, ``Worker.workloop``).
    """
    return isinstance(unwrapped(error), billiard_pool.MaybeEncodingError)


def unwrapped(error: BaseException) -> BaseException:
    """Return the error that billiard has sent with its traceback.  Why: its wrapper has no public name."""
    found: BaseException = error.exc if isinstance(error, ExceptionWithTraceback) else error
    return found


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
