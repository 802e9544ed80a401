"""One delivery of a message being run by one worker: claim, save, hand over."""

from __future__ import annotations

import inspect
import logging
import sys
import time
import traceback
from datetime import datetime
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn

from celery import signals as celery_signals
from celery import states
from celery.exceptions import Ignore, Retry, SoftTimeLimitExceeded
from celery.result import AsyncResult
from kombu.exceptions import OperationalError

from celery_continuations import celery_internals, conf, transactions
from celery_continuations.core import codec
from celery_continuations.core.evolution import adapt, old_names
from celery_continuations.core.inbox import TIMED_OUT, Inbox
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Outcome, Snapshot, Waiting, with_misfit
from celery_continuations.core.step import Step, Wait
from celery_continuations.exceptions import (
    CheckpointError,
    ContinuationError,
    CrashLoopError,
    Interrupt,
    Interrupted,
    InvalidStepError,
    ResumeLimitError,
    SnapshotTooLargeError,
    StoreError,
    UnserializableValueError,
)
from celery_continuations.execution.direct import ATTRIBUTE, execution_of, is_of_item, snapshot_text
from celery_continuations.execution.reporting import Teller
from celery_continuations.execution.sigterm import defer_terminate
from celery_continuations.execution.triggers import Watch, watcher
from celery_continuations.messages.body import Body, received
from celery_continuations.messages.republish import (
    CHANGED,
    DELIVERY,
    GENERATION,
    OWN_HEADERS,
    SNAPSHOT,
    keepable,
    republish,
)
from celery_continuations.messages.requeue import requeue_delay
from celery_continuations.process.identity import new_owner
from celery_continuations.process.stop_flag import COLD, StopFlag, flag_at
from celery_continuations.protocol import commands, rules
from celery_continuations.protocol.endings import ended, needs_chord_count, seconds_kept
from celery_continuations.protocol.liveness import death_of
from celery_continuations.protocol.rules import Claim
from celery_continuations.stores import CANCEL, PAUSE, Fence, Record, Status, Store, open_store

if TYPE_CHECKING:
    from celery import Task

__all__ = ["Execution"]

STOPPING = "stopping"
MAX_RUNTIME = "max_runtime"
RETRY = "retry"
CODE_CHANGED = "code changed"
SUPERSEDED = "superseded"
PAUSED = "paused"
CANCELLED = "cancelled"

# Seconds between two questions to a task's own predicate.
_ASK_EVERY = 0.1

# Seconds until a message that could not be claimed is tried again.
_CLAIM_COUNTDOWN = 5

# Seconds between two checks for another execution that has the task, while the worker's lease is over.
_VERIFY_EVERY = 0.1

# So many times as long as an attempt to save took that failed, the task works before the next.
_UNHURRIED = 3

# So many losses together with other tasks are worth one alone.
_SHARED_CRASHES = 10

# Seconds between two attempts to publish: the first, and the longest.
_PUBLISH_DELAY, _PUBLISH_DELAY_MAX = 0.2, 5.0

# Bytes of a message's body above which a warning says what it costs to keep it.
_LARGE_BODY = 1024 * 1024

# Names of the tasks that this process has warned about because of their large arguments.
_large: set[str] = set()

# Names of the tasks of this process that have been told of as slow to come to a checkpoint.
_slow: set[str] = set()

# The same of tasks with a loop whose source is not checked.
_unchecked: set[str] = set()


class Final(BaseException):
    """Carries an error that no retry can help past ``autoretry_for``, from the task's body to its boundary.

    Attributes:
        error: the error.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Execution:
    """The host of a run in a worker.

    Args:
        task: the task.
        request: of the message being run.
        body: the message's, where it is not the one that the request carries.

    Attributes:
        in_body: whether the task's own code is running.
        called_with: the arguments that its function was given.
        run: the run, once the task is claimed.
        retry_options: what ``self.retry()`` wants of the next message, once it was called.
    """

    is_direct = False

    def __init__(self, task: Task[..., object], request: Any, body: Body | None = None) -> None:
        self.task = task
        self.request = request
        self.in_body = False
        self.called_with: tuple[Any, Any] = ((), {})
        self.run: Run | None = None
        self.retry_options: dict[str, Any] | None = None
        self._delivery: dict[str, Any] = getattr(request, DELIVERY, None) or {}
        for name in OWN_HEADERS:  # a task that hands its headers on to another one hands on none of its progress
            (request.headers or {}).pop(name, None)
        self._body = body or received(task, request, self._delivery.get("content_type"))
        self._teller = Teller(task, request.id, self._delivery.get("sends_as"))
        self._generation: int = getattr(request, GENERATION, None) or 0
        self._refusal: str | None = None  # why this execution never began, or must end
        self._store: Store
        self._claim: Claim | None = None
        self._fence: Fence | None = None  # None: nothing in the store is ours to write
        self._watch: Watch | None = None
        self._predicate: Any = None
        self._answer: str | None = None  # of the predicate, until it has been acted on
        self._crash_loop: CrashLoopError | None = None
        self._handback: dict[str, Any] | None = None  # the snapshot as it was claimed, and options
        self._error: Exception | None = None  # that the task is to resume from
        self._interval = 0.0
        self._runtime: float | None = None
        self._largest = 0
        self._began = time.monotonic()
        self._ran_before = 0.0
        self._saved_text: str | None = None
        self._handover: dict[str, Any] | None = None  # the message, until it is out
        self._interrupted: Interrupted | None = None
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
        if self._crash_loop is not None:
            raise self._crash_loop
        if self.run is not None:
            return self.run
        if self._refusal is not None:
            raise Interrupt(None, None, self._refusal)
        flag = flag_at(self._delivery.get("flag"))
        if self.resumed and flag.level:
            self._give_back(0, "this worker is stopping")
        claim = self._claimed(flag.worker)
        if claim is None:
            if self._was_cancelled() and not self._ended(None):
                self._tell_revoked()  # the process that cancelled it may have died before it could
            self._teller.log(logging.INFO, "refused", "refused: this message is stale, the task went on without it")
            self._refuse("stale")
        self._claim, self._fence, self._saved_text = claim, claim.fence, claim.snapshot
        _hear_postrun()
        if claim.value is not None and self.request.chord and self._ended(None) is not None:
            self._put_off_if_claimed(celery_internals.chord_claim_left(self.task.backend, self.request.group))
            # The chord is to count it; the callbacks were dispatched before the result was stored.
            self.request.callbacks = self.request.chain = None
        try:
            snapshot = self._begun_with(claim.snapshot)
        except InvalidStepError as exc:
            self._hand_back_if_changed(exc)
            raise Final(exc) from None
        snapshot.executions += 1
        snapshot.waiting = snapshot.misfit = None
        self._ran_before = snapshot.run_time
        self.run = Run(self.request.id, snapshot, self)
        self._largest = conf.setting(self.task, "max_snapshot")
        self._refuse_crash_loop(snapshot)
        self._start_watch(flag)
        defer_terminate(flag)
        if claim.snapshot is not None:
            self._teller.resumed(self.run, claim.lost)
            self._warn_of_slow_queue()
        return self.run

    def _begun_with(self, text: str | None) -> Snapshot:
        """Return what to go on from, adapted to the current code.

        Raises:
            InvalidStepError: when it is of newer code, or of a newer release of this library.
        """
        version = conf.setting(self.task, "version")
        if text is None:
            return Snapshot(task_version=version)
        snapshot = Snapshot.loads(text)
        adapt(snapshot, version, conf.setting(self.task, "renamed_steps"))
        return snapshot

    def _put_off_if_claimed(self, seconds: float) -> None:
        """Whoever is to call the chord's body may be the execution that was lost: nobody else can, until then.

        Raises:
            Interrupt: where that is some seconds away.
        """
        if not seconds:
            return
        assert self._claim is not None and self._fence is not None
        snapshot = self._claim.snapshot or Snapshot().dumps()
        fence = rules.interrupt(self._store, self.request.id, self._fence, snapshot, seconds)
        why = f"the chord's body is another's to call, for {seconds} s"
        if fence is not None and fence.status == Status.QUEUED:
            self._teller.log(logging.INFO, "given_back", "given back: %s", why)
            self._publish(generation=fence.generation, snapshot=snapshot, options={"countdown": seconds})
        self._refuse(why)

    def _hand_back_if_changed(self, error: InvalidStepError) -> None:
        """The code at hand does not fit the snapshot: for the grace other workers may have code that does.

        Raises:
            Interrupt: while the grace lasts, and where the task says that it is to start over then.
        """
        assert self._claim is not None
        now = time.time()
        since = float(getattr(self.request, CHANGED, None) or now)
        snapshot, countdown = self._claim.snapshot or self._begun_with(None).dumps(), requeue_delay()
        if now - since >= conf.seconds(conf.setting(self.task, "change_grace")):
            if conf.setting(self.task, "on_change") != "restart":
                return
            snapshot, countdown = self._begun_with(None).dumps(), 0.0
        else:
            snapshot = with_misfit(snapshot, str(error))
        self._teller.log(
            logging.WARNING, "changed", "requeued: this worker's code cannot resume its snapshot: %s", error
        )
        self._handback = {"snapshot": snapshot, "options": {"countdown": countdown, "headers": {CHANGED: since}}}
        raise Interrupt(None, None, CODE_CHANGED)

    def _claimed(self, worker: str) -> Claim | None:
        self._store = open_store(self.task.app, conf.setting(self.task, "store"))
        try:
            return rules.claim(
                self._store,
                self.request.id,
                self._generation,
                new_owner(worker),
                snapshot=getattr(self.request, SNAPSHOT, None),
                message=self._keepable,
                ended=self._ended,
                # By its lease only a sweeper may judge, which knows whether leases can be trusted just now.
                death=lambda owner: death_of(owner, self._store.look().leases, by_lease=False),
            )
        except InvalidStepError as exc:  # the record of an execution that was lost is of a later release
            self._give_back(requeue_delay(), f"this worker cannot resume its snapshot: {exc}")
        except StoreError as exc:
            self._give_back(_CLAIM_COUNTDOWN, f"cannot be claimed, to be tried again in {_CLAIM_COUNTDOWN} s: {exc}")

    def _ended(self, record: Record | None) -> tuple[str, float] | None:
        if record and needs_chord_count(record, bool(self.request.chord), self.task.backend):
            return None
        return ended(self.task, self.request.id, self.task.backend)

    def _keepable(self, **options: Any) -> str | None:
        """Return the message of this task, as the store keeps it, to be published again."""
        if not self._store.keeps:
            return None
        self._warn_of_large_arguments()
        options = {**conf.setting(self.task, "resume_options"), **options}
        return keepable(self.task, self.request, body=self._body, options=options)

    def _warn_of_large_arguments(self) -> None:
        size = self._body.size
        if size > _LARGE_BODY and self.task.name not in _large:
            _large.add(self.task.name)
            self._teller.log(
                logging.WARNING,
                "large_arguments",
                "the message's body has %d bytes, which stay in the store until the task has ended; pass a reference "
                "to the data instead",
                size,
                bytes=size,
            )

    def _refuse_crash_loop(self, snapshot: Snapshot) -> None:
        limit = conf.setting(self.task, "max_crashes")
        alone, shared = snapshot.losses
        if alone >= limit or shared >= _SHARED_CRASHES * limit:
            step, cursor = snapshot.current or (None, None)
            self._crash_loop = CrashLoopError(alone + shared, step, cursor)
            raise self._crash_loop

    def _give_back(self, countdown: float, why: str) -> NoReturn:
        """Publish the message as it was, and end without touching anything else."""
        level = logging.WARNING if countdown else logging.INFO
        self._teller.log(level, "given_back", "given back: %s", why)
        self._publish(
            generation=self._generation,
            snapshot=getattr(self.request, SNAPSHOT, None),
            options={"countdown": countdown},
        )
        self._refuse(why)

    def _refuse(self, why: str) -> NoReturn:
        self._refusal = why
        self._fence = None
        raise Interrupt(None, None, why)

    def _start_watch(self, flag: StopFlag) -> None:
        assert self.run is not None
        now = time.monotonic()
        self._watch = watch = Watch(self.run, flag)
        self._interval = float(conf.setting(self.task, "checkpoint_interval"))
        if self._store.keeps:
            watch.save_at = now + self._interval
        self._runtime = self._max_runtime()
        if self._runtime is not None:
            watch.leave_at = now + self._runtime
        self._predicate = conf.predicate(conf.setting(self.task, "should_interrupt"))
        if self._predicate is not None:
            watch.ask_at = now
        watch.look()
        watcher.add(watch)

    def _max_runtime(self) -> float | None:
        value = conf.setting(self.task, "max_runtime")
        if value == "auto":
            return conf.auto_max_runtime(self.task.app, self._store.keeps)
        return None if value is None else float(conf.seconds(value))

    def _warn_of_slow_queue(self) -> None:
        """A slice costs one wait in the queue: more than the slice itself is a waste."""
        assert self.run is not None
        snapshot = self.run.snapshot
        waited = time.time() - snapshot.left_at
        if snapshot.reason == MAX_RUNTIME and self._runtime is not None and waited > self._runtime:
            self._teller.log(
                logging.WARNING,
                "slow_queue",
                "waited %.0f s in the queue after a slice of %.0f s; continuation_resume_options can name a queue "
                "that is consumed first",
                waited,
                self._runtime,
            )

    # -- running: the run's host

    guard = staticmethod(transactions.refuse_open)

    def attend(self, run: Run) -> str | None:
        """Do what is due; return a reason to leave, if there is one."""
        watch = self._watch
        assert watch is not None
        now = time.monotonic()
        self._measure_gap(run, now)
        run.attention = False
        reason: str | None = None
        if watch.flag.level:
            reason = STOPPING
        elif now >= watch.leave_at:
            reason = MAX_RUNTIME
        else:
            reason = self._ask(now)
        if reason is not None:
            run.attention = True  # for the next checkpoint, if this one comes too early to leave
        elif run.unit is None and (now >= watch.save_at or watch.verify):
            self.save(run)
            run.attention = self._interval == 0
        watch.due_since = time.monotonic() if run.attention else inf
        return reason

    def _measure_gap(self, run: Run, now: float) -> None:
        """Note for how long the task has made no checkpoint; at least for as long as one has been wanted."""
        watch = self._watch
        assert watch is not None
        gap = round(now - watch.due_since, 1)  # less than nothing where none was wanted
        if gap <= 1:
            return
        run.snapshot.gap = max(gap, run.snapshot.gap)
        if gap > conf.grace_period(self.task.app) and self.task.name not in _slow:
            _slow.add(self.task.name)
            self._warn_of_slow_checkpoint(run, gap)

    def _warn_of_slow_checkpoint(self, run: Run, gap: float) -> None:
        step = run.current.name if run.current else next(reversed(run.snapshot.completed), None)
        where = "before its first step" if step is None else f"in or after step {step!r}"
        self._teller.log(
            logging.WARNING,
            "slow_checkpoint",
            "made no checkpoint for %.1f s, %s; a worker that is stopped may be killed before the next one",
            gap,
            where,
            step=step,
            seconds=gap,
        )

    def _ask(self, now: float) -> str | None:
        """Return what the task's own predicate says, or what it said, if that could not be acted on."""
        assert self._watch is not None
        if self._answer is None and now >= self._watch.ask_at:
            self._watch.ask_at = now + _ASK_EVERY
            answer = self._predicate(self.task)
            if answer:
                self._answer = answer if isinstance(answer, str) else repr(answer)
        return self._answer

    def save(self, run: Run) -> None:
        """Save the run's progress; and learn, also where there is none, what others want of it.

        Raises:
            Interrupt: when another execution has taken over, or a pause or cancel command is pending.
        """
        watch = self._watch
        assert watch is not None
        assert self._fence is not None
        if run.attention:
            self._measure_gap(run, time.monotonic())  # while the step is known that it was in
        text = self._snapshot_text()
        if run.unit is not None:
            self._commit(run, run.unit, text)
            return
        if not self._store.keeps:
            return
        watch.verifying()
        began = time.monotonic()
        rest = 0.0
        try:
            kept = rules.save(self._store, self.request.id, self._fence, text, self._keepable)
        except StoreError as exc:
            self._warn_not_saved("its progress", exc)
            # A store that does not answer is not to take up all of the task's time.
            rest = _UNHURRIED * (time.monotonic() - began)
        else:
            if kept is None:
                self._interrupt_superseded()
            self._fence, self._saved_text = kept, text
            if kept.wish:
                run.interrupt(PAUSED if kept.wish == PAUSE else CANCELLED)
        now = time.monotonic()
        watch.verify_at = now + max(_VERIFY_EVERY, rest)
        watch.save_at = now + max(self._interval, rest)

    def join(self, run: Run) -> None:
        """The saves of this step are to be part of the task's own transactions.

        Raises:
            StoreError: when the record is not in the same database.
        """
        assert self._fence is not None
        unit = run.unit
        unit.begin()
        try:
            record = self._store.within(unit.connection()).read(self.request.id)
        except BaseException:
            unit.rollback()
            raise
        unit.commit()
        if record is None or record.fence.wishing("") != self._fence.wishing(""):
            raise StoreError(
                type(self._store).__name__,
                f"the record of this task is not found through {unit.name}; transaction= needs a "
                "continuation_store in the same database, and in the same schema of it",
            )

    def _commit(self, run: Run, unit: transactions.Unit, text: str) -> None:
        """Save as part of the task's own transaction, and commit both.

        Raises:
            Interrupt: see :meth:`save`; where another has taken over nothing is committed.
        """
        watch = self._watch
        assert watch is not None
        assert self._fence is not None
        unit.begin()
        watch.verifying()
        try:
            kept = rules.save(self._store.within(unit.connection()), self.request.id, self._fence, text, self._keepable)
        except StoreError as exc:
            raise exc.__cause__ or exc from None  # as an error of any of the task's own statements
        if kept is None:
            unit.rollback()
            self._interrupt_superseded()
        try:
            unit.commit()
        except BaseException:
            unit.rollback()
            if not self._was_committed(kept, text):
                raise
        run.committed()
        self._fence, self._saved_text = kept, text
        now = time.monotonic()
        watch.verify_at, watch.save_at = now + _VERIFY_EVERY, now + self._interval
        if kept.wish:
            run.interrupt(PAUSED if kept.wish == PAUSE else CANCELLED)

    def _was_committed(self, fence: Fence, text: str) -> bool:
        """Ask the store, until it answers, what became of a commit whose answer was lost."""
        delay = _PUBLISH_DELAY
        while True:
            try:
                # It waits for a transaction that the server has not ended yet.
                self._store.swap(self.request.id, fence, Record(fence))
                record = self._store.read(self.request.id)
            except StoreError as exc:
                if flag_at(self._delivery.get("flag")).level == COLD:
                    self._refusal, self._fence = STOPPING, None  # the sweep that recovers the record finds what is true
                    raise SystemExit(f"the store is away, and this worker is to stop at once: {exc}") from exc
                self._warn_not_saved("its progress, of which it is not known whether it was committed", exc)
            else:
                return record is not None and record.snapshot == text
            time.sleep(delay)
            delay = min(2 * delay, _PUBLISH_DELAY_MAX)

    def _interrupt_superseded(self) -> NoReturn:
        assert self.run is not None
        self._refusal, self._fence = SUPERSEDED, None
        self._tell_superseded()
        self.run.interrupt(SUPERSEDED)

    # -- waiting

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        return time.time()

    def is_over(self, until: float | None) -> bool:
        """Whether that moment, in seconds since the epoch, has come."""
        return until is not None and self.now() >= until

    def delivery(self, name: str, close: bool) -> Outcome | None:
        """Return what was delivered under that name; with ``close`` there is always an outcome, and nothing after."""
        if not self._store.keeps:
            return None
        assert self._fence is not None
        # What was delivered under a name that the wait had before counts as well.
        names = [name, *old_names(name, conf.setting(self.task, "renamed_steps"))]
        try:
            if not close:
                record = self._store.read(self.request.id)
                inbox = Inbox.loads(record.inbox if record else None)
                return next((inbox[one] for one in names if one in inbox), None)
            outcomes = [commands.close_wait(self._store, self.request.id, self._fence, one) for one in names]
            outcome = next((one for one in outcomes if one != TIMED_OUT), TIMED_OUT)
        except StoreError as exc:
            self._warn_not_saved(f"the end of wait {name!r}", exc)
            self.leave(Waiting("time", time.time() + _CLAIM_COUNTDOWN), "the store is away")
        if outcome is None:
            self._interrupt_superseded()
        return outcome

    def leave(self, waiting: Waiting, reason: str) -> NoReturn:
        """Give the worker back until then.

        Raises:
            StoreError: where there is no store that could keep the wait.
            Interrupt: else.
        """
        assert self.run is not None
        if not self._store.keeps:
            raise StoreError(
                "message",
                f"a task cannot wait in it ({reason}), for a message cannot be woken; set continuation_store to a "
                "redis://, db+postgresql://, db+sqlite:/// or file:// URL",
            )
        self._warn_of_short_results(waiting, reason)
        self.run.snapshot.waiting = waiting
        self.run.interrupt(reason)

    def keep(self) -> None:
        """Save now; leave the worker where that is not possible."""
        assert self.run is not None
        self.save(self.run)
        if self._saved_text != self._snapshot_text():
            self.leave(Waiting("time", time.time() + _CLAIM_COUNTDOWN), "the store is away")

    def _warn_of_short_results(self, waiting: Waiting, reason: str) -> None:
        """Celery's chord forgets what has come, and who is counted, after ``result_expires``."""
        expires = conf.seconds(conf.celery_setting(self.task.app, "result_expires"))
        if not self.request.chord or not expires:
            return
        if waiting.until is None or waiting.until - time.time() > expires:
            self._teller.log(
                logging.WARNING,
                "short_results",
                "is in a chord's header and %s for longer than result_expires = %s s: the chord may forget its other "
                "members; set result_expires to more than the wait",
                reason,
                expires,
            )

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        """Tell what happens to a step."""
        self._teller.step(event, run, step, **data)

    def back_off(self, run: Run, seconds: float) -> NoReturn:
        """Give the worker back for so long.  Raises as :meth:`leave`."""
        self.leave(Waiting("time", time.time() + seconds), f"throttled for {seconds:g} s")

    def may_put_aside(self, run: Run, step: Step, error: Exception) -> bool:
        """Whether the error is of the current item alone; tell of it if so."""
        if not is_of_item(error):
            return False
        self._teller.log(
            logging.WARNING,
            "item_failed",
            "step %s puts aside what failed at %r: %s: %s",
            step.name,
            step.cursor,
            type(error).__name__,
            error,
            exc_info=error,
            step=step.name,
        )
        return True

    def unchecked(self, run: Run, step: Step) -> None:
        """Tell once per process that a loop's items cannot be told apart."""
        if self.task.name not in _unchecked:
            _unchecked.add(self.task.name)
            self._teller.log(
                logging.INFO,
                "source_unchecked",
                "step %s reads items that have nothing to tell them apart: a change of its source is only noticed when "
                "it becomes shorter; give iterate identity=, or a source that is read by key",
                step.name,
                step=step.name,
            )

    # -- leaving

    def failed(self, error: Exception) -> None:
        """The task's body raised: interrupt instead, if it got on in this execution and may resume.

        Raises:
            Interrupt: when the task is to resume.
        """
        run = self.run
        if run is not None and run.misfit is None and self._goes_on and self._does_not_bind(error):
            run.misfit = InvalidStepError(
                f"its arguments do not fit {self.task.name}{inspect.signature(self.task.run)}: {error}", recorded=True
            )
            error = run.misfit
        if run is not None and run.misfit is not None:
            self._hand_back_if_changed(run.misfit)
        final = None if run is None else run.changed or run.misfit
        if run is not None and final is not None:  # whatever the task has made of it
            run.failed(final)
            raise Final(final)
        if run is None or run.interrupted is not None or celery_internals.is_predicate(error):
            return
        run.failed(error)
        if not run.progressed or not conf.setting(self.task, "resume_errors_after_advancing"):
            return
        if isinstance(error, (SoftTimeLimitExceeded, MemoryError, ContinuationError)):
            return
        if self.task.throws and isinstance(error, self.task.throws):
            return
        run.take_snapshot().remember_error(error)
        self._error = error
        run.interrupt(f"{type(error).__name__}: {error}")

    def returned(self) -> None:
        """The task's body has returned; what it has swallowed is raised once more."""
        run = self.run
        if self._refusal is not None:
            raise Interrupt(None, None, self._refusal)
        if run is None:
            return
        if self._crash_loop is not None:
            raise self._crash_loop
        if run.misfit is not None:
            self._hand_back_if_changed(run.misfit)
            raise run.misfit
        if run.changed is not None:
            raise run.changed
        if run.interrupted is not None:
            raise run.interrupted
        if self.retry_options is not None:
            raise Retry("retry(throw=False)")
        try:
            run.finish()
        except InvalidStepError:
            if run.misfit is not None:
                self._hand_back_if_changed(run.misfit)
            raise

    @property
    def _goes_on(self) -> bool:
        """Whether an earlier execution has begun the task."""
        return self.resumed or (self._claim is not None and self._claim.snapshot is not None)

    def _does_not_bind(self, error: Exception) -> bool:
        """Whether the body never ran because the function does not take these arguments."""
        code = getattr(inspect.unwrap(self.task.run), "__code__", None)
        ran = any(frame.f_code is code for frame, _ in traceback.walk_tb(error.__traceback__))
        if type(error) is not TypeError or ran:
            return False
        try:
            inspect.signature(self.task.run).bind(*self.called_with[0], **self.called_with[1])
        except TypeError:
            return True
        return False

    def finish(self, value: Any) -> None:
        """Write down the return value before Celery passes it on.

        Raises:
            Ignore: when another execution has taken over.
        """
        if self._fence is None:
            return
        try:
            encoded: str | None = codec.dumps(value)
        except UnserializableValueError:
            encoded = None
        if encoded is not None and len(encoded) > self._largest:
            encoded = None  # steps are remembered: to compute it again, the body runs again
        try:
            fence = rules.finish(self._store, self.request.id, self._fence, self._timed_text(), encoded)
        except StoreError as exc:
            self._warn_not_saved("that it has finished", exc)
            return
        if fence is None:
            self._end_superseded()
        self._fence = fence

    def left_by(self, error: BaseException) -> BaseException:
        """Return what to raise in the place of ``error``, which leaves the task.

        That is a Retry for an interruption: Celery stores it and then has :meth:`publish` called.

        Raises:
            Ignore: when another execution has taken over, or this one never began.
            ResumeLimitError: when the task was resumed too often.
        """
        if isinstance(error, Final):
            error = error.error
        if self.run is not None:
            self.run.abandon()
        if self._handback is not None and self._fence is not None:
            return self._hand_back(**self._handback)
        interrupt = self._interruption(error)
        if interrupt is not None:
            return self._hand_over(interrupt)
        if isinstance(error, Retry) and self.retry_options is not None:
            assert self.run is not None
            self.run.take_snapshot()
            self._leave(RETRY, self.retry_options)
        elif isinstance(error, Exception) and not celery_internals.is_predicate(error):
            self._save_failure(error)
        return error

    def _interruption(self, error: BaseException) -> Interrupt | None:
        """Return the interruption that ``error`` is, or stands in the way of, or None."""
        if self._refusal is not None:
            raise Ignore(self._refusal)
        run = self.run
        if run is None or run.interrupted is not None:
            return None if run is None else run.interrupted
        # Its own stopping worker kills the task: SystemExit on prefork, GreenletExit on gevent.
        killed = isinstance(error, SystemExit) or type(error).__name__ == "GreenletExit"
        if killed and self._watch is not None and self._watch.flag.level:
            return Interrupt(None, None, STOPPING)
        return None

    def _hand_over(self, interrupt: Interrupt) -> BaseException:
        run = self.run
        assert run is not None
        if self._fence is not None and self._fence.wish == CANCEL:
            self._cancel()
        snapshot = run.take_snapshot()
        if self._error is not None or interrupt.reason is self._answer:
            limit = conf.setting(self.task, "max_resumptions")
            if limit is not None and snapshot.counted >= limit:
                raise ResumeLimitError(limit, interrupt.reason) from self._error
            snapshot.counted += 1
        options = dict(conf.setting(self.task, "resume_options"))
        if self._error is not None:
            options["countdown"] = conf.setting(self.task, "resume_error_countdown")
        self._leave(interrupt.reason, options)
        self._interrupted = shown = _shown(run.current, interrupt.reason)
        countdown: Any = options.get("countdown") or 0
        retry: BaseException = Retry(str(shown), exc=shown, when=countdown)
        retry.__cause__ = self._error  # and not the Interrupt, whose traceback is of no use to anybody
        return retry

    def _hand_back(self, snapshot: str | None, options: dict[str, Any]) -> BaseException:
        self._leave_to_message(snapshot or Snapshot().dumps(), options)
        self._interrupted = Interrupted(None, None, CODE_CHANGED)
        retry: BaseException = Retry(str(self._interrupted), exc=self._interrupted, when=options["countdown"])
        return retry

    def _leave(self, reason: str, options: dict[str, Any]) -> None:
        """Leave the record to the next message, and keep that for :meth:`publish`."""
        assert self.run is not None
        snapshot = self.run.snapshot
        snapshot.resumptions += 1
        snapshot.reason = reason
        snapshot.left_at = time.time()
        message = self._keepable(**options) if reason == RETRY else None
        self._leave_to_message(self._timed_text(), options, message)

    def _leave_to_message(self, text: str, options: dict[str, Any], message: str | None = None) -> None:
        assert self._fence is not None
        self._teller.leaves()
        generation = self._fence.generation
        if self._watch is not None:
            watcher.leave(self._watch)
        self._handover = {"generation": generation, "snapshot": text, "options": options}
        if self._waiting is not None:
            return  # the record follows when Celery has stored its state: a delivery may publish it from then on
        try:
            fence = rules.interrupt(self._store, self.request.id, self._fence, text, _delay(options), message)
        except StoreError as exc:
            self._warn_not_saved("its progress, and carries it in the message only", exc)
        else:
            if fence is None:
                self._handover = None
                self._end_superseded()
            self._fence = fence
            if fence.wish == CANCEL:
                self._handover = None
                self._cancel()

    @property
    def _waiting(self) -> Waiting | None:
        return self.run.snapshot.waiting if self.run is not None else None

    def _is_to_be_published(self, handover: dict[str, Any]) -> bool:
        """Whether a message continues the task; otherwise a time, a delivery or an operator does."""
        waiting = self._waiting
        if waiting is not None and self._fence is not None:
            due_in = None if waiting.until is None else max(0.0, waiting.until - time.time())
            try:
                fence = rules.wait(
                    self._store,
                    self.request.id,
                    self._fence,
                    handover["snapshot"],
                    due_in,
                    lambda inbox: waiting.kind == "delivery" and waiting.key in Inbox.loads(inbox),
                )
            except StoreError as exc:
                self._warn_not_saved("that it waits, and tries again", exc)
                handover["options"] = {**handover["options"], "countdown": _CLAIM_COUNTDOWN}
                return True
            if fence is None:
                self._tell_superseded()
            self._fence = fence
        elif self._fence is not None and self._was_cancelled():
            self._tell_revoked()  # the state RETRY has just been stored over it
            return False
        fence = self._fence
        if fence is not None and fence.wish == CANCEL:
            self._revoke(fence)
            return False
        if fence is not None and fence.status == Status.WAITING and self._result_is_there(waiting):
            return self._wakes(str(waiting and waiting.key))
        return fence is not None and fence.status not in (Status.WAITING, Status.PAUSED)

    def _was_cancelled(self) -> bool:
        """Whether the task was cancelled while no execution was running."""
        if not self._store.keeps:
            return False
        try:
            record = self._store.read(self.request.id)
        except StoreError:
            return False  # the message ends at the record
        return record is not None and record.fence.status == Status.CANCELLED

    def _wakes(self, key: str) -> bool:
        """End the own wait for a result; whether that is ours to do."""
        try:
            return commands.wake(self._store, self.request.id, key) is not None
        except StoreError as exc:
            self._warn_not_saved("that it need not wait, and looks again when it is due", exc)
            return False

    def _result_is_there(self, waiting: Waiting | None) -> bool:
        """Whether the child has ended before anybody could know that it is waited for."""
        if waiting is None or waiting.kind != "result":
            return False
        return AsyncResult(str(waiting.key), app=self.task.app).state in states.READY_STATES

    def _cancel(self) -> NoReturn:
        """End as the pending command says.

        Raises:
            Ignore: always.
        """
        assert self._fence is not None
        self._revoke(self._fence)
        raise Ignore(CANCELLED)

    def _revoke(self, fence: Fence) -> None:
        self._tell_revoked()
        try:
            seconds = seconds_kept(self.task, Status.CANCELLED)
            rules.end(self._store, self.request.id, fence, Status.CANCELLED, "", seconds)
        except StoreError as exc:
            self._warn_not_saved("that it was cancelled", exc)
        self._fence = None

    def _tell_revoked(self) -> None:
        task = self.task
        keeps = not celery_internals.ignore_result_of(task, self.request)
        task.backend.mark_as_revoked(self.request.id, CANCELLED, request=self.request, store_result=keeps)
        task.send_event("task-revoked", terminated=False, signum=None, expired=False)
        self._teller.log(logging.INFO, "cancelled", "cancelled")

    def publish(self) -> None:
        """Celery has stored the state RETRY: now the message may go out."""
        handover = self._handover
        if handover is None:
            return
        try:
            if self._is_to_be_published(handover):
                self._publish(**handover)
        except SystemExit:
            self._release()  # the message of this execution, which is not acknowledged, may claim again
            raise
        except Exception as exc:
            self._teller.log(logging.ERROR, "publish_failed", "cannot be published again, and fails: %r", exc)
            self._end(Status.FAILED)
            raise
        finally:
            self._handover = None
            self.close()
        if self._interrupted is not None:  # reported only now, so that the next execution need not wait for it
            self._teller.interrupted(self._interrupted, self._error, None if self._handback else self.run)
        elif self.run is not None and self.run.current is not None:
            self._teller.step("step_interrupted", self.run, self.run.current, reason=RETRY)

    def _publish(self, **message: Any) -> None:
        """Publish; wait while the broker is unavailable, because no other process has the task until then."""
        delay = _PUBLISH_DELAY
        while True:
            try:
                return republish(self.task, self.request, body=self._body, **message)
            except (OperationalError, OSError, AttributeError) as exc:
                # kombu's Redis transport raises AttributeError where a connection is lost just now (a channel
                # without a connection); as the last of some attempts it is another one.
                if isinstance(exc, AttributeError) and delay >= _PUBLISH_DELAY_MAX:
                    raise
                if flag_at(self._delivery.get("flag")).level == COLD:
                    raise SystemExit(f"the broker is away, and this worker is to stop at once: {exc}") from exc
                self._teller.log(
                    logging.WARNING,
                    "publish_failed",
                    "could not be published again, trying again in %s s: %r",
                    delay,
                    exc,
                )
            except BaseException as exc:
                # gevent would acknowledge the message of a greenlet that it has killed
                if type(exc).__name__ != "GreenletExit":
                    raise
            time.sleep(delay)
            delay = min(2 * delay, _PUBLISH_DELAY_MAX)

    def refuse_if_changed(self) -> None:
        """Raise the misfit, or the change of a loop's source, that the task has caught."""
        found = None if self.run is None else self.run.changed or self.run.misfit
        if found is not None:
            raise found

    def forget(self) -> None:
        """``self.replace()`` puts another task under this id, which must not inherit the record.

        Raises:
            Ignore: when another execution has taken over.
        """
        if self._fence is not None:
            if not self._store.delete(self.request.id, self._fence):
                self._end_superseded()
            self._fence = None

    def settle(self, state: str | None, result: Any) -> None:
        """Celery has stored ``state``, or has tried to: the record follows."""
        if self._handover is not None:
            self.publish()  # the state RETRY could not be stored, and on_retry was not called
        elif state == states.REJECTED and getattr(result, "requeue", False):
            self._release()
        elif state in (states.FAILURE, states.REJECTED):
            self._end(Status.FAILED)
        elif state in (states.SUCCESS, states.IGNORED) and sys.exc_info()[1] is None:
            # Celery says SUCCESS also where a signal, or its backend, has kept it from storing that: the value is
            # kept then, and the execution that recovers the task returns it.
            self._end(Status.DONE)

    def close(self) -> None:
        """The execution is over, but for a message that is still to go out."""
        if self._watch is not None and self._handover is None:
            watcher.remove(self._watch)
        if self.run is None and self._fence is None:
            self.detach()

    def detach(self) -> None:
        """Let go of the request, which would else live, arguments and all, until a garbage collection."""
        vars(self.request).pop(ATTRIBUTE, None)
        self.request = None

    def _save_failure(self, error: Exception) -> None:
        """Save a last time before an error is stored, which only the owner may do."""
        if self._fence is None or self.run is None or isinstance(error, CheckpointError):
            return  # the work since the last save was part of a transaction that the error has undone
        try:
            kept = rules.save(self._store, self.request.id, self._fence, self._timed_text(), self._keepable)
        except (StoreError, SnapshotTooLargeError, UnserializableValueError) as exc:
            self._warn_not_saved("its last progress", exc)
        else:
            if kept is None:
                self._end_superseded()

    def _end(self, status: str) -> None:
        if self._fence is None or (self._fence.status == Status.QUEUED and status != Status.FAILED):
            return
        text = None if status == Status.FAILED else self._timed_text()  # _save_failure has saved it
        try:
            rules.end(self._store, self.request.id, self._fence, status, text, seconds_kept(self.task, status))
        except StoreError as exc:
            self._warn_not_saved("that it has ended", exc)
        self._fence = None

    def _release(self) -> None:
        """Let the message of this execution, which goes back to the broker, claim again."""
        if self._fence is None:
            return
        try:
            rules.release(self._store, self.request.id, self._fence, self._timed_text())
        except StoreError as exc:
            self._warn_not_saved("that it gives its message back", exc)
        self._fence = None

    def _end_superseded(self) -> NoReturn:
        self._fence = None
        self._tell_superseded()
        raise Ignore(SUPERSEDED)

    def _tell_superseded(self) -> None:
        self._teller.log(logging.WARNING, "refused", "ends here: another execution has taken the task over")

    # -- the snapshot's text

    def _timed_text(self) -> str:
        assert self.run is not None
        self.run.snapshot.run_time = self._ran_before + time.monotonic() - self._began
        return self._snapshot_text()

    def _snapshot_text(self) -> str:
        assert self.run is not None
        return snapshot_text(self.run, self._largest)

    def _warn_not_saved(self, what: str, error: Exception) -> None:
        self._teller.log(logging.WARNING, "save_failed", "could not save %s: %s", what, error)


def _shown(step: Step | None, reason: str) -> Interrupted:
    """Return what people see of an interruption."""
    if step is None:
        return Interrupted(None, None, reason)
    if isinstance(step, Wait):
        return Interrupted(step.name, None, reason)
    return Interrupted(step.name, step.cursor, reason, _percent(*step.progress()))


def _percent(done: int | None, total: int | None) -> int | None:
    """Return how much of a step is done, rounded down, or None where that is unknown."""
    if done is None or not total or not 0 <= done <= total:  # a source's own cursor need not be a count
        return None
    return 100 * done // total


def _delay(options: dict[str, Any]) -> float:
    """Return the seconds until a message of these options is to be run."""
    eta = options.get("eta")
    if isinstance(eta, datetime):
        return max(0.0, (eta - datetime.now(eta.tzinfo)).total_seconds())
    return float(options.get("countdown") or 0)


@cache
def _hear_postrun() -> None:
    """Have records follow the states that Celery stores, from this process's first claim on."""
    celery_signals.task_postrun.connect(_on_postrun, dispatch_uid="celery_continuations")


def _on_postrun(sender: Any = None, state: str | None = None, retval: Any = None, **kwargs: Any) -> None:
    execution = execution_of(sender.request_stack.top if sender is not None else None)
    if isinstance(execution, Execution):
        execution.settle(state, retval)
        execution.detach()
