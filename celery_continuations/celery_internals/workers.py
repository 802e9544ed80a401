"""Of the worker, its pool and its requests."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable
from typing import Any

from billiard import common as billiard_common
from billiard import pool as billiard_pool
from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]
from billiard.exceptions import Terminated
from billiard.process import BaseProcess, current_process
from celery.exceptions import TaskPredicate, WorkerLostError
from kombu.utils.functional import maybe_list

__all__ = [
    "SOFT_LIMIT",
    "around_soft_shutdown",
    "forget_consumer_cancellation",
    "in_pool_child",
    "is_lost_process",
    "is_stored_as_failure",
    "is_unsendable",
    "pool_pids",
    "read_all_results",
    "take_over_revoke",
    "terminate_signal",
    "unflag_revoked",
    "unwrapped",
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
