"""The claim of a message: its execution now owns the task's record, or ends without touching anything."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import NoReturn

from celery_continuations import celery_internals, conf
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.exceptions import CrashLoopError, InvalidStepError, StoreError
from celery_continuations.execution.checkpoints import Checkpoints
from celery_continuations.execution.message import Message
from celery_continuations.execution.ownership import Ownership
from celery_continuations.execution.phases import Phased
from celery_continuations.execution.running import Running
from celery_continuations.execution.sigterm import defer_terminate
from celery_continuations.execution.triggers import MAX_RUNTIME, Triggers, watcher
from celery_continuations.execution.unfit import Unfit, adapted, refuse_changed_code
from celery_continuations.messages.requeue import CLAIM_COUNTDOWN, requeue_delay
from celery_continuations.process.identity import new_owner
from celery_continuations.process.reminder import Reminder
from celery_continuations.process.stop_flag import StopFlag
from celery_continuations.protocol.claim import claim
from celery_continuations.protocol.liveness import loss_of
from celery_continuations.protocol.owned import OwnedRecord
from celery_continuations.stores import Status, Store
from celery_continuations.stores.problems import UnstorableError

__all__ = ["Claiming", "Refused"]

# The outages of stores, as the claims of this process meet them.
_outages: defaultdict[Store, Reminder] = defaultdict(Reminder)

# This many suspected crashes, of several tasks at once, count as one crash of this task alone.
_SUSPECTED_CRASHES = 10


class Refused(Exception):
    """The message is ended without touching anything else.

    Attributes:
        why: the reason, in a few words.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Claiming:
    """Claims the task of a message.

    Args:
        execution: the execution that claims.
        message: the message that it runs.
        lose: see :class:`Ownership`.
    """

    def __init__(self, execution: Phased, message: Message, lose: Callable[[str], None]) -> None:
        self._execution = execution
        self._message = message
        self._lose = lose

    def next_phase(self) -> Running | Unfit:
        """Claim, and return the next phase of the execution.

        Raises:
            Refused: when the message is stale, or was requeued.
            Interrupt: when the task must be resumed by other code.
        """
        message = self._message
        flag = message.flag
        if message.generation > 0 and flag.level:
            self._requeue(0, "this worker is stopping")
        owned = self._owned(flag)
        if owned is None:
            message.end_cancelled()
            self._report_stale()
            raise Refused("stale")
        ownership = Ownership(message, owned, self._lose)
        self._wait_for_chord(ownership)
        try:
            return self._running(ownership, adapted(message, owned.snapshot), flag)
        except InvalidStepError as exc:
            refuse_changed_code(self._execution, message, ownership, None, exc)
            return Unfit(self._execution, ownership, exc)
        except Exception as exc:  # a snapshot that cannot be read, for instance
            return Unfit(self._execution, ownership, exc)

    def _report_stale(self) -> None:
        reporter = self._message.reporter
        if self._message.begins_another_task:
            reporter.log(
                logging.WARNING,
                "id_in_use",
                "not run: a task with this id is under way, or has ended and its record is kept; use another id",
            )
        else:
            reporter.log(logging.INFO, "refused", "refused: this message is stale; the task continued without it")

    def _owned(self, flag: StopFlag) -> OwnedRecord | None:
        message = self._message
        try:
            owned = claim(
                message.store,
                message.request.id,
                message.generation,
                new_owner(flag.worker),
                snapshot=message.snapshot,
                message=message.saved,
                ended=message.ended,
                # Only a sweeper judges by leases: it knows whether they can be trusted at the moment.
                loss_of=lambda owner: loss_of(owner, message.store.scan().leases, by_lease=False),
                stores_results=message.stores_results,
            )
        except InvalidStepError as exc:  # a lost execution of a later release wrote the record
            self._requeue(requeue_delay(), f"this worker cannot resume its snapshot: {exc}")
        except UnstorableError:
            raise  # the task fails: no later attempt can succeed
        except StoreError as exc:
            # Each message returns every few seconds: warn of the outage once a minute.
            level = logging.WARNING if _outages[message.store].is_due() else logging.INFO
            self._requeue(CLAIM_COUNTDOWN, f"the claim failed; trying again in {CLAIM_COUNTDOWN} s: {exc}", level)
        else:
            lasted = _outages[message.store].reset()
            if lasted is not None:
                message.reporter.log(logging.INFO, "claimed_again", "claimed: the store failed for %.0f s", lasted)
            return owned

    def _requeue(self, countdown: float, why: str, level: int = logging.WARNING) -> NoReturn:
        """Publish the message unchanged, and end without touching anything else."""
        level = level if countdown else logging.INFO
        self._message.reporter.log(level, "given_back", "requeued: %s", why)
        self._message.publish(
            generation=self._message.generation, snapshot=self._message.snapshot, options={"countdown": countdown}
        )
        raise Refused(why)

    def _wait_for_chord(self, ownership: Ownership) -> None:
        """Have the chord count a member again, unless the lost execution may be calling the chord's body.

        Raises:
            Refused: in that case; the task is requeued until no other process can call the body.
        """
        message, record = self._message, ownership.record
        if record.value is None or not message.request.chord or message.ended(None) is None:
            return
        seconds = celery_internals.chord_claim_left(message.task.backend, message.request.group)
        if seconds:
            snapshot = record.snapshot or Snapshot().dumps()
            with ownership.writing() as owned:
                owned.queue(snapshot, seconds)
            why = f"another process may call the chord's body for the next {seconds} s"
            if record.fence.status == Status.QUEUED:
                message.reporter.log(logging.INFO, "given_back", "requeued: %s", why)
                message.publish(generation=record.fence.generation, snapshot=snapshot, options={"countdown": seconds})
            raise Refused(why)
        # Only the chord must count it: the callbacks were dispatched before the result was stored.
        message.request.callbacks = message.request.chain = None

    def _running(self, ownership: Ownership, snapshot: Snapshot, flag: StopFlag) -> Running:
        message = self._message
        snapshot.executions += 1
        snapshot.waiting = snapshot.misfit = snapshot.error = snapshot.raised_by = None
        checkpoints = self._execution.checkpoints = Checkpoints(message, ownership, snapshot, self._triggers)
        crash_loop = _crash_loop(snapshot, message.setting("max_crashes"))
        if crash_loop is not None:
            message.reporter.hide_cursors(crash_loop)
            return Running(self._execution, checkpoints, crash_loop)
        message.report_started()
        checkpoints.triggers.check()
        watcher.add(checkpoints.triggers)
        defer_terminate(flag)
        if ownership.record.snapshot is not None:
            message.reporter.resumed(checkpoints.run, ownership.record.is_recovered)
            self._warn_of_slow_queue(checkpoints)
        return Running(self._execution, checkpoints)

    def _triggers(self, run: Run) -> Triggers:
        message = self._message
        predicate = conf.predicate(message.setting("should_interrupt"))
        runtime = message.setting("max_runtime")
        if runtime == "auto":
            runtime = conf.auto_max_runtime(message.task.app, message.store.keeps)
        return Triggers(
            run,
            message.flag,
            save_every=float(message.setting("checkpoint_interval")) if message.store.keeps else None,
            runtime=None if runtime is None else float(conf.seconds(runtime)),
            predicate=None if predicate is None else lambda: predicate(message.task),
        )

    def _warn_of_slow_queue(self, checkpoints: Checkpoints) -> None:
        snapshot, runtime = checkpoints.run.snapshot, checkpoints.triggers.runtime
        waited = self._message.now() - snapshot.left_at
        if snapshot.reason == MAX_RUNTIME and runtime is not None and waited > runtime:
            self._message.reporter.slow_queue(waited, runtime)


def _crash_loop(snapshot: Snapshot, limit: int) -> CrashLoopError | None:
    alone, suspected = snapshot.losses
    if alone < limit and suspected < _SUSPECTED_CRASHES * limit:
        return None
    step, cursor = snapshot.current or (None, None)
    return CrashLoopError(alone + suspected, step, cursor)
