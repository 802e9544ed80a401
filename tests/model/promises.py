"""The promises to users, checked at every write of a history.  The numbers are those of the promises."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from celery import states

from celery_continuations.core.inbox import Inbox
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.stores import Fence, Record, Status
from celery_continuations.stores.base import NOT_CLAIMABLE, OWNED
from tests.model.clients import KIND
from tests.model.stand_ins import plain

if TYPE_CHECKING:
    from tests.model.world import Actor, World

FINAL = frozenset((states.SUCCESS, states.FAILURE, states.REVOKED))

#: Final, unless an operator retries a failed task.
FINISHED = frozenset((Status.DONE, Status.FAILED, Status.CANCELLED))

# The possible next statuses of a record without a message, and whether only a client may cause them.
_NEXT = {
    Status.WAITING: (frozenset((Status.QUEUED, Status.PAUSED, Status.CANCELLED)), False),
    Status.PAUSED: (frozenset((Status.QUEUED, Status.CANCELLED)), True),
    Status.FAILED: (frozenset((Status.QUEUED,)), True),
}


class Violation(AssertionError):
    """A promise was broken."""


class Promises:
    """Observes one history, and remembers what the checks need."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.runs: dict[str, int] = {}  # runs of each effect of the task's body
        self.done: frozenset[str] = frozenset()  # effects that an accepted write records as done
        self.tokens: dict[str, Any] = {}  # the values of call steps, as first accepted
        self.claimed = 0  # the generation of the last claim
        self.final: str | None = None  # the value of the first `finishing` that was accepted
        self.bodies = 0
        self.links = 0
        self.more_links = 0  # extra callbacks allowed by faults between the callback's dispatch and the result
        self.state = states.PENDING
        self.result: Any = None
        self.published = 0
        self.known = False  # a record was written: from here on the task must not be lost

    def key(self) -> tuple[Any, ...]:
        """Return the part of the state that the future depends on."""
        return (
            sorted(self.runs), sorted(self.done), sorted(self.tokens.items()), f"g{self.claimed}", self.final,
            self.links > 0, self.links - self.more_links, self.state, self.result, self.known,
        )  # fmt: skip

    def forget(self) -> None:
        """Note that the store has lost the record: only the end of the task is still promised."""
        self.done, self.tokens, self.claimed, self.final = frozenset(), {}, 0, None
        self.world.errors += 9

    def violated(self, promise: int, why: str) -> None:
        """Raise a violation of a promise, which ends the history."""
        self.world.violation = self.world.violation or Violation(f"promise {promise}: {why}")

    # -- the store

    def written(self, actor: Actor, old: Record | None, new: Record, text: str | None) -> None:
        """Check an accepted write; ``text`` is its snapshot, or None."""
        self.known = self.known or new.message is not None
        self.world.has_written = True
        was, now = old.fence if old else None, new.fence
        if was is not None:
            self._succession(actor, was, now, old is not None and bool(old.value))
        if now.status == Status.RUNNING and now.owner and (was is None or now.owner != was.owner):
            self._claim(actor, now)
            actor.log[:] = [f"{plain(new.snapshot)} {new.value}"]  # earlier observations no longer count
        elif now.generation < self.claimed:
            self.violated(3, f"a write of generation {now.generation} after claim {self.claimed}")
        if text and self._progress(text) and now.owner == actor.owner and now.status == Status.RUNNING:
            actor.saved(plain(text), self.done)
        if now.status == Status.WAITING:
            self._waits(new)
        if now.status == Status.RETURNED and new.value:
            if self.final is not None and new.value != self.final:
                self.violated(3, f"the return value {self.final} was followed by {new.value}")
            self.final = new.value
        if actor.owner is not None and was is not None and was.owner == actor.owner and now.status in NOT_CLAIMABLE:
            actor.owner = None

    def _waits(self, record: Record) -> None:
        """Check that the task does not wait for something that has already arrived."""
        waiting = Snapshot.loads(record.snapshot or "").waiting
        if waiting is None or (waiting.kind == "delivery" and waiting.key in Inbox.loads(record.inbox)):
            self.violated(1, f"it waits with {record.inbox} in its inbox")

    def _succession(self, actor: Actor, was: Fence, now: Fence, has_value: bool) -> None:
        if was.status in NOT_CLAIMABLE and was.status != now.status:
            allowed, is_outside = _NEXT.get(was.status, (frozenset(), False))
            if now.status not in allowed or (is_outside and actor.kind != KIND):
                self.violated(3, f"a record that was {was.status} became {now.status}, by {actor.name}")
        if was.status in OWNED and was.owner and was.owner != now.owner:
            owner = self.world.owners[was.owner]
            if owner not in (actor, actor.ends) and owner.is_at_work:
                self.violated(3, f"{actor.name} took the task from {owner.name}, which is at work")
            if (
                (has_value or (owner.has_dispatched and self.world.errors))
                and owner is not actor
                and self._may_dispatch_again(owner)
            ):
                self.more_links += 1

    def _may_dispatch_again(self, owner: Actor) -> bool:
        """Whether the callback may come twice: from a frozen execution, or one cut off before its result was stored."""
        return owner.worker.was_frozen or (owner.has_dispatched and not owner.has_stored)

    def _claim(self, actor: Actor, now: Fence) -> None:
        if now.generation <= self.claimed:
            self.violated(3, f"claim {now.generation} after claim {self.claimed}")
        if self.state in FINAL and actor.kind == "execution" and not self.world.has_frozen:
            self.violated(13, f"the task is claimed after a stored {self.state}")
        self.claimed = now.generation
        actor.owner = now.owner
        actor.knows = self.done
        actor.knows_final = self.final is not None
        self.world.owners[now.owner] = actor

    def _progress(self, text: str) -> bool:
        """Check the progress in a snapshot; return whether it has grown."""
        data = json.loads(text)
        done: set[str] = set()
        for name, kind, value in data.get("completed", []):
            done |= self.world.scenario.effects_of(name)
            if kind == "value" and self.tokens.setdefault(name, value) != value:
                self.violated(2, f"the value of step {name} was {self.tokens[name]} and became {value}")
        if data.get("current"):
            name, cursor = data["current"]
            if name not in self.world.scenario.waits:
                done |= set(sorted(self.world.scenario.effects_of(name))[: cursor or 0])
        if not self.done <= done:
            self.violated(3, f"progress was lost: {sorted(self.done - done)}")
        grown, self.done = done > self.done, frozenset(done)
        return grown

    # -- the task's body

    def body(self, actor: Actor) -> str:
        """Note the start of the body; return a value unique to this execution."""
        self.bodies += 1
        if actor.knows_final:
            self.violated(3, "the body was run again after its return value was kept")
        return f"b{self.bodies}"

    def effect(self, actor: Actor, name: str) -> str:
        """Note an effect of the body; return a value unique to this execution."""
        self.runs[name] = self.runs.get(name, 0) + 1
        actor.effects += 1
        if name in actor.knows:
            self.violated(2, f"{name} was done before this execution began, and is done again")
        record = self.world.record()
        if self.world.stores and (record is None or record.fence.owner != actor.owner):
            actor.stale_effects += 1
            if actor.stale_effects > 1:
                self.violated(3, "a superseded execution continues")
        repeated = sum(runs - 1 for runs in self.runs.values())
        if repeated > self.world.repeats_allowed:
            self.violated(2, f"{repeated} repetitions, {self.world.losses} crashes and freezes: {self.runs}")
        return f"t{sum(self.runs.values())}"

    # -- Celery

    def stored(self, actor: Actor, state: str, result: Any) -> None:
        """Check a new state in the result backend."""
        actor.has_stored = True
        if actor.kind == KIND and state == states.PENDING:
            self.state, self.result = state, result  # an operator retries
            return
        self._refuse_refused(actor, f"stored {state}")
        if self.state in FINAL and self.world.has_frozen and not self.world.scenario.is_fenceless:
            return
        if self.state == states.REVOKED and state == states.RETRY and self._is_cancelled():
            self.state, self.result = state, result  # cancelled while it was stopping: the state is stored again
            return
        if self.state in FINAL and (state, result) != (self.state, self.result):
            self.violated(3, f"{self.state} {self.result!r} was overwritten by {state} {result!r}")
        self.state, self.result = state, result

    def _is_cancelled(self) -> bool:
        record = self.world.record()
        return record is not None and record.fence.status == Status.CANCELLED

    def _refuse_refused(self, actor: Actor, what: str) -> None:
        if actor.is_refused:
            self.violated(3, f"{actor.name}, which was refused, {what}")

    def refused(self, actor: Actor, expected: Fence, found: Fence) -> None:
        """Note a refused write."""
        if expected.owner and expected.owner == actor.owner:
            taken = found.owner if found.status in OWNED else ""
            actor.is_refused = found.generation > expected.generation or taken not in ("", actor.owner)

    def link(self, actor: Actor) -> None:
        """Check a dispatched callback."""
        self._refuse_refused(actor, "dispatched the callback")
        self.links += 1
        actor.has_dispatched = True

    # -- the end

    def at_end(self) -> None:
        """Check the end state, when nothing more can happen."""
        world, scenario = self.world, self.world.scenario
        if not self.known and world.may_lose_fresh:
            return
        if self.state not in scenario.ends:
            self.violated(1, f"the task ended as {self.state} {self.result!r}, not as {sorted(scenario.ends)}")
        record = world.record()
        if record is not None and record.fence.status not in FINISHED and not world.errors:
            self.violated(1, f"the result is stored, and the record is {record.fence.status}")
        if self.state == states.SUCCESS:
            self._at_success()
        scenario.at_end(self)

    def _at_success(self) -> None:
        scenario = self.world.scenario
        missing = scenario.effects - set(self.runs)
        if missing:
            self.violated(1, f"{sorted(missing)} was never done")
        if self.final is not None and json.dumps(self.result) != json.dumps(json.loads(self.final)):
            self.violated(3, f"the value kept was {self.final}, the result stored is {self.result!r}")
        token = self.tokens.get("call")
        if token is not None and self.result[0] != token:
            self.violated(2, f"the call step's value was {token}, the task saw {self.result[0]}")
        if not 1 <= self.links <= 1 + self.more_links:
            self.violated(6, f"the callback was dispatched {self.links} times, {1 + self.more_links} may be")
