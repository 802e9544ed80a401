"""One delivery of a message being run by one worker: claim, save, hand over."""

from __future__ import annotations

import logging
import os
import time
import uuid
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from celery import signals as celery_signals
from celery import states
from celery.exceptions import Ignore, Retry, SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from celery_continuations import conf, seams, signals
from celery_continuations.core import codec
from celery_continuations.core.run import Continuation, Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.core.step import Step
from celery_continuations.exceptions import (
    ContinuationError,
    Interrupt,
    Interrupted,
    ResumeLimitError,
    SnapshotTooLargeError,
    StoreError,
    UnserializableValueError,
)
from celery_continuations.republish import GENERATION, SNAPSHOT, republish
from celery_continuations.stores import Claim, Fence, Status, open_store
from celery_continuations.worker.flag import StopFlag, flag_at
from celery_continuations.worker.receiving import DELIVERY
from celery_continuations.worker.terminate import defer_terminate
from celery_continuations.worker.watcher import Watch, watcher

if TYPE_CHECKING:
    from celery import Task

__all__ = ["DirectExecution", "Execution", "execution_of"]

logger = logging.getLogger("celery_continuations")

#: The attribute of a request that holds its execution: one request is one execution.
ATTRIBUTE = "continuation_execution"

STOPPING = "stopping"
MAX_RUNTIME = "max_runtime"
SUPERSEDED = "superseded"

# Seconds between two questions to a task's own predicate.
_ASK_EVERY = 0.1

# Seconds until a message that could not be claimed is tried again.
_CLAIM_COUNTDOWN = 5

# Seconds between two attempts to publish: the first, and the longest.
_PUBLISH_DELAY, _PUBLISH_DELAY_MAX = 0.2, 5.0

# A resumed message that nobody has claimed by then may be held by a killed worker.
_QUEUED_DUE = 60.0


def execution_of(request: Any) -> Any:
    """Return the execution of a request, or None."""
    return None if request is None else getattr(request, ATTRIBUTE, None)


class DirectExecution:
    """A call without a worker, and eager mode: steps run straight through, validated."""

    def __init__(self, request: Any) -> None:
        self.in_body = False
        self.run = Run(request.id or str(uuid.uuid4()), Snapshot(executions=1), self, interruptible=False)
        setattr(request, ATTRIBUTE, self)

    def begin(self) -> Run:
        """There is nothing to claim."""
        return self.run

    def attend(self, run: Run) -> str | None:
        """Nothing could take up the rest."""
        run.attention = False
        return None

    def save(self, run: Run) -> None:
        """There is no store."""

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        """Nobody listens."""

    def failed(self, error: Exception) -> None:
        """Errors are raised as they are."""

    def returned(self) -> None:
        """The task's body has returned."""
        self.run.finish()


class Execution:
    """The host of a run in a worker.

    Args:
        task: the task.
        request: of the message being run.
    """

    def __init__(self, task: Task, request: Any) -> None:
        self.in_body = False
        self.run: Run | None = None
        self.task = task
        self.request = request
        self.retry_options: dict[str, Any] | None = None
        self.refusal: str | None = None
        self._delivery: dict[str, Any] = getattr(request, DELIVERY, None) or {}
        self._generation: int = getattr(request, GENERATION, None) or 0
        self._claim: Claim | None = None
        self._fence: Fence | None = None
        self._watch: Watch | None = None
        self._error: Exception | None = None
        self._predicate: Any = None
        self._interval = 0.0
        self._began = time.monotonic()
        self._ran_before = 0.0
        self._saved_text: str | None = None
        self._handover: dict[str, Any] | None = None
        setattr(request, ATTRIBUTE, self)

    # -- beginning

    @property
    def resumed(self) -> bool:
        """Whether the message continues an earlier execution."""
        return self._generation > 0

    @property
    def finished_value(self) -> str | None:
        """The encoded return value of an execution that was lost after it had finished."""
        return self._claim.value if self._claim else None

    def begin(self) -> Run:
        """Claim the task, unless that has been done, and return its run.

        Raises:
            Interrupt: when the message is stale, or was given back.
        """
        if self.run is not None:
            return self.run
        if self.refusal is not None:
            raise Interrupt(None, None, self.refusal)
        flag = self._flag()
        if self.resumed and flag.level:
            self._give_back(0, "this worker is stopping")
        self.store = open_store(self.task.app, conf.setting(self.task, "store"))
        carried = getattr(self.request, SNAPSHOT, None)
        try:
            claim = self.store.claim(
                self.request.id,
                self._generation,
                f"{self.request.hostname}/{os.getpid()}/{uuid.uuid4().hex}",
                carried,
                self._is_finished,
            )
        except StoreError as exc:
            self._log(
                logging.WARNING, "given_back", "cannot be claimed, trying again in %s s: %s", _CLAIM_COUNTDOWN, exc
            )
            self._give_back(_CLAIM_COUNTDOWN, str(exc))
        if claim is None:
            self._log(logging.INFO, "refused", "refused: this message is stale, the task went on without it")
            self._refuse("stale")
        self._claim, self._fence = claim, claim.fence
        snapshot = Snapshot() if claim.snapshot is None else Snapshot.loads(claim.snapshot)
        snapshot.executions += 1
        self._saved_text = claim.snapshot
        self._ran_before = snapshot.run_time
        self.run = Run(self.request.id, snapshot, self)
        self._start_watch(flag)
        defer_terminate(flag)
        celery_signals.task_postrun.connect(_on_postrun, dispatch_uid="celery_continuations")
        if claim.snapshot is not None:
            self._tell_resumed(snapshot)
        return self.run

    def _flag(self) -> StopFlag:
        return flag_at(self._delivery.get("flag"))

    def _is_finished(self) -> bool:
        return self.task.backend.get_state(self.request.id) in states.READY_STATES

    def _give_back(self, countdown: float, why: str) -> NoReturn:
        """Publish the message as it was, and end without touching anything else."""
        republish(
            self.task,
            self.request,
            generation=self._generation,
            snapshot=getattr(self.request, SNAPSHOT, None),
            delivery=self._delivery,
            options={"countdown": countdown},
        )
        self._log(logging.INFO, "given_back", "given back: %s", why)
        self._refuse(why)

    def _refuse(self, why: str) -> NoReturn:
        self.refusal = why
        raise Interrupt(None, None, why)

    def _start_watch(self, flag: StopFlag) -> None:
        assert self.run is not None
        now = time.monotonic()
        self._watch = watch = Watch(self.run, flag)
        self._interval = float(conf.setting(self.task, "checkpoint_interval"))
        if self.store.keeps:
            watch.save_at = now + self._interval
        runtime = self._max_runtime()
        if runtime is not None:
            watch.leave_at = now + runtime
        self._predicate = _resolve(conf.setting(self.task, "should_interrupt"))
        if self._predicate is not None:
            watch.ask_at = now
        watch.look()
        watcher.add(watch)

    def _max_runtime(self) -> float | None:
        value = conf.setting(self.task, "max_runtime")
        if value != "auto":
            return None if value is None else float(conf.seconds(value))
        return conf.auto_max_runtime(self.task.app, self.store.keeps)

    # -- running: the run's host

    def attend(self, run: Run) -> str | None:
        """Do what is due; return a reason to leave, if there is one."""
        watch = self._watch
        assert watch is not None
        now = time.monotonic()
        run.attention = False
        reason: str | None = None
        if watch.flag.level:
            reason = STOPPING
        elif now >= watch.leave_at:
            reason = MAX_RUNTIME
        elif now >= watch.ask_at:
            watch.ask_at = now + _ASK_EVERY
            answer = self._predicate(self.task)
            if answer:
                reason = answer if isinstance(answer, str) else repr(answer)
        if reason is not None:
            run.attention = True  # for the next checkpoint, if this one comes too early to leave
        elif now >= watch.save_at:
            self.save(run)
            run.attention = self._interval == 0
        return reason

    def save(self, run: Run) -> None:
        """Save the run's progress, if there is any that is not saved."""
        text = self._snapshot_text(run)
        if text == self._saved_text:
            return
        assert self._watch is not None and self._fence is not None
        if not self.store.keeps:
            return
        try:
            kept = self.store.save(self.request.id, self._fence, text)
        except StoreError as exc:
            self._log(logging.WARNING, "save_failed", "could not save its progress, goes on and tries again: %s", exc)
        else:
            if not kept:
                self._superseded(run)
            self._saved_text = text
        self._watch.save_at = time.monotonic() + self._interval

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        """Log and signal what happens to a step."""
        message = _STEP_MESSAGES[event]
        if event == "step_started" and step.resumed:
            message = "step %s resumed from %r"
        args = (step.name, step.cursor) if "%r" in message else (step.name,)
        level = logging.DEBUG if event == "step_skipped" else logging.INFO
        self._log(level, event, message, *args, step=step.name, cursor=step.cursor)
        getattr(signals, event).send(sender=self.task, task_id=self.request.id, step=step, **data)

    def _superseded(self, run: Run) -> None:
        run.snapshot.reason = SUPERSEDED
        self._fence = None
        run.interrupt(SUPERSEDED)

    def _snapshot_text(self, run: Run) -> str:
        snapshot = run.take_snapshot()
        text = snapshot.dumps()
        limit = conf.setting(self.task, "max_snapshot")
        if len(text) > limit:
            raise SnapshotTooLargeError(len(text), limit, snapshot.largest_part())
        return text

    # -- leaving

    def failed(self, error: Exception) -> None:
        """The task's body raised: interrupt instead, if it got on in this execution and may resume.

        Raises:
            Interrupt: when the task is to resume.
        """
        run = self.run
        if run is None or run.interrupted is not None or not run.progressed or seams.is_predicate(error):
            return
        if not conf.setting(self.task, "resume_errors_after_advancing"):
            return
        if isinstance(error, (SoftTimeLimitExceeded, MemoryError, ContinuationError, *self.task.throws)):
            return
        run.take_snapshot().remember_error(error)
        self._error = error
        run.interrupt(f"{type(error).__name__}: {error}")

    def returned(self) -> None:
        """The task's body has returned; what it has swallowed is raised once more."""
        run = self.run
        if self.refusal is not None:
            raise Interrupt(None, None, self.refusal)
        if run is None:
            return
        if run.interrupted is not None:
            raise run.interrupted
        if self.retry_options is not None:
            raise Retry("retry(throw=False)")
        run.finish()

    def finish(self, value: Any) -> None:
        """Write down the return value before Celery passes it on.

        Raises:
            Ignore: when another execution has taken over.
        """
        if self.run is None or self._fence is None:
            return
        try:
            encoded: str | None = codec.dumps(value)
        except UnserializableValueError:
            encoded = None  # steps are remembered: the body is run again to make it anew
        try:
            fence = self.store.finish(self.request.id, self._fence, self._timed_text(), encoded)
        except StoreError as exc:
            self._log(logging.WARNING, "save_failed", "could not save that it has finished: %s", exc)
            return
        if fence is None:
            self._fence = None
            self._end_superseded()
        self._fence = fence

    def should_hand_over(self, error: BaseException) -> Interrupt | None:
        """Return the interruption that ``error`` is, or stands in the way of, or None."""
        run = self.run
        if self.refusal is not None:
            return Interrupt(None, None, self.refusal)
        if run is None:
            return None
        if run.interrupted is not None:
            return run.interrupted
        # A kill of the task by its own stopping worker: SystemExit on prefork, GreenletExit on gevent.
        killed = isinstance(error, SystemExit) or type(error).__name__ == "GreenletExit"
        if killed and self._watch is not None and self._watch.flag.level:
            try:
                run.interrupt(STOPPING)
            except Interrupt as interrupt:
                return interrupt
        return None

    def hand_over(self, interrupt: Interrupt) -> None:
        """Leave the task to another execution.

        Raises:
            Retry: for Celery to store; then :meth:`publish` is called.
            Ignore: when another execution has taken over, or this one never began.
            ResumeLimitError: when the task was resumed too often.
        """
        if self.refusal is not None:
            raise Ignore(self.refusal)
        run = self.run
        assert run is not None
        if interrupt.reason == SUPERSEDED:
            self._end_superseded()
        snapshot = run.take_snapshot()
        if interrupt.reason not in _UNCOUNTED:
            limit = conf.setting(self.task, "max_resumptions")
            if limit is not None and snapshot.counted >= limit:
                raise ResumeLimitError(limit, interrupt.reason) from self._error
            snapshot.counted += 1
        options = dict(conf.setting(self.task, "resume_options"))
        if self._error is not None:
            options["countdown"] = conf.setting(self.task, "resume_error_countdown")
        self._leave(interrupt.reason, options)
        step, cursor = snapshot.current[0] if snapshot.current else None, interrupt.cursor
        if run.current is not None:
            cursor = run.current.cursor
        shown = Interrupted(step, cursor, interrupt.reason)
        self._log(logging.INFO, "interrupted", "%s", shown, step=step, cursor=cursor, reason=interrupt.reason)
        signals.task_interrupted.send(sender=self.task, task_id=self.request.id, interrupt=shown)
        raise Retry(str(shown), exc=shown, when=options.get("countdown") or 0) from self._error

    def retry_later(self) -> None:
        """``self.retry()`` was called: leave the record to its message."""
        assert self.run is not None and self.retry_options is not None
        if self.run.interrupted is None:
            self.run.take_snapshot()
        self._leave("retry", self.retry_options)

    def _leave(self, reason: str, options: dict[str, Any]) -> None:
        assert self.run is not None
        snapshot = self.run.snapshot
        snapshot.resumptions += 1
        snapshot.reason = reason
        text = self._timed_text()
        generation = self._generation + 1
        if self._fence is not None:
            generation = self._fence.generation
            countdown = options.get("countdown") or 0
            try:
                kept = self.store.interrupt(self.request.id, self._fence, text, countdown + _QUEUED_DUE)
            except StoreError as exc:
                self._log(logging.WARNING, "save_failed", "carries its progress in the message only: %s", exc)
            else:
                if not kept:
                    self._end_superseded()
                self._fence = Fence(generation, Status.QUEUED)
        self._handover = {"generation": generation, "snapshot": text, "options": options}

    def publish(self) -> None:
        """Celery has stored the state RETRY: now the message may go out.

        While the broker is away this waits for it: the task is in nobody's hands until then.
        """
        handover, self._handover = self._handover, None
        delay = _PUBLISH_DELAY
        while handover is not None:
            try:
                republish(self.task, self.request, delivery=self._delivery, **handover)
                return
            except (OperationalError, OSError) as exc:
                self._log(
                    logging.WARNING,
                    "publish_failed",
                    "could not be published again, trying again in %s s: %r",
                    delay,
                    exc,
                )
            except Exception as exc:
                self._log(logging.ERROR, "publish_failed", "cannot be published again, and fails: %r", exc)
                self._end(Status.FAILED)
                raise
            time.sleep(delay)
            delay = min(2 * delay, _PUBLISH_DELAY_MAX)

    def forget(self) -> None:
        """``self.replace()`` puts another task under this id, which must not inherit the record."""
        if self._fence is not None:
            self.store.delete(self.request.id, self._fence)
            self._fence = None

    def settle(self, state: str | None, result: Any) -> None:
        """Celery has stored ``state``: the record follows."""
        if self._fence is None or self._fence.status == Status.QUEUED or self.run is None:
            return
        try:
            if state == states.REJECTED and getattr(result, "requeue", False):
                self._release()
            elif state in (states.FAILURE, states.REJECTED):
                self._end(Status.FAILED)
            elif state in (states.SUCCESS, states.IGNORED):
                self._end(Status.DONE)
        except StoreError as exc:
            self._log(logging.WARNING, "save_failed", "could not save that it has ended: %s", exc)

    def close(self) -> None:
        """The execution is over, whatever came of it."""
        if self._watch is not None:
            watcher.remove(self._watch)

    def _end(self, status: str) -> None:
        if self._fence is None:
            return
        if status == Status.FAILED:
            keep = conf.seconds(conf.setting(self.task, "keep_failed"))
        else:
            keep = conf.tombstone_seconds(self.task.app)
        self.store.end(self.request.id, self._fence, status, self._timed_text(), keep)
        self._fence = None

    def _release(self) -> None:
        if self._fence is not None:
            self.store.release(self.request.id, self._fence, self._generation)
            self._fence = None

    def _end_superseded(self) -> None:
        self._log(logging.WARNING, "refused", "ends here: another execution has taken the task over")
        raise Ignore(SUPERSEDED)

    def _timed_text(self) -> str:
        assert self.run is not None
        self.run.snapshot.run_time = self._ran_before + time.monotonic() - self._began
        return self._snapshot_text(self.run)

    # -- telling

    def _tell_resumed(self, snapshot: Snapshot) -> None:
        assert self.run is not None
        done = ", ".join(snapshot.completed) or "nothing"
        self._log(
            logging.INFO,
            "resumed",
            "resumed (%s), completed: %s",
            snapshot.reason,
            done,
            reason=snapshot.reason,
            completed=list(snapshot.completed),
        )
        signals.task_resumed.send(sender=self.task, task_id=self.request.id, continuation=Continuation(self.run))

    def _log(self, level: int, action: str, message: str, *args: Any, **data: Any) -> None:
        logger.log(
            level,
            "Task %s[%s] " + message,
            self.task.name,
            self.request.id,
            *args,
            extra={"action": action, "task_id": self.request.id, "task_name": self.task.name, "data": data},
        )


#: Reasons that do not count against continuation_max_resumptions.
_UNCOUNTED = frozenset((STOPPING, MAX_RUNTIME, "isolated"))

_STEP_MESSAGES = {
    "step_started": "step %s started",
    "step_completed": "step %s completed",
    "step_skipped": "step %s skipped",
    "step_failed": "step %s failed",
}


def _resolve(predicate: Any) -> Any:
    if not isinstance(predicate, str):
        return predicate
    module, _, name = predicate.rpartition(".")
    return getattr(import_module(module), name)


def _on_postrun(sender: Any = None, state: str | None = None, retval: Any = None, **kwargs: Any) -> None:
    execution = execution_of(sender.request_stack.top if sender is not None else None)
    if isinstance(execution, Execution):
        execution.settle(state, retval)
