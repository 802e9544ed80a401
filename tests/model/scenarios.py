"""Tasks to be cut off, each with what may come of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from celery import Celery, states
from celery.exceptions import Reject

from celery_continuations import ContinuableTask
from celery_continuations.stores import Status, factory
from tests.model.clients import (
    CHILD_ID,
    Clients,
    Errand,
    cancel,
    deliver,
    end_child,
    has_failed,
    is_child_started,
    pause,
    resume,
    retry,
)
from tests.model.promises import Promises
from tests.model.stand_ins import Connection, Message, NoEvents, Now, Producer, SimBackend, SimStore
from tests.model.world import TASK_ID, World

_numbers = itertools.count()

BROKERS = ("amqp", "filesystem", "redis")


class Scenario:
    """A task, and the world it runs in.

    Args:
        broker: what becomes of the unacknowledged messages of a connection that is lost: ``amqp`` returns them at
            once, ``filesystem`` loses them, ``redis`` returns them at any later time.
        is_provable: whether workers can see each other's processes.
        is_atomic: whether the result backend looks and writes under one lock.
    """

    #: The states that the task may end in.
    ends = frozenset((states.SUCCESS,))
    #: Repetitions that are no fault's.
    repeats = 0
    #: Repetitions that each fault may bring: the current item, and what was not saved.
    repeats_for_each = 1
    items = 2
    #: Whether it may be revoked.
    is_revocable = False
    #: Whether all workers remember that it was.
    is_remembered = True
    #: Whether the result backend takes what a frozen execution stores late, once it wakes, over a FAILURE.  No
    #: backend of Celery's can refuse that, and so no task is safe from it; elsewhere it is left aside.
    is_fenceless = False
    #: Messages of other tasks in its queue.
    backlog = 0
    #: What may happen to a call of the store: it is away, its driver sends a write twice, or it loses the record.
    store_faults: tuple[str, ...] = ("away", "twice")
    #: Whether losses may come to their limit.
    has_limit = False
    #: What somebody outside does: several clients at once, each one thing after the other.
    errands: tuple[tuple[Errand, ...], ...] = ()
    #: Whether what somebody outside does is begun before any time passes.
    is_prompt = False
    #: The steps that wait.
    waits: frozenset[str] = frozenset()
    options: dict[str, Any] = {}

    def __init__(self, broker: str = "amqp", *, is_provable: bool = True, is_atomic: bool = True) -> None:
        self.broker = broker
        self.is_provable = is_provable
        self.is_atomic = is_atomic
        self.app = _app()
        self.effects = frozenset(("call", *self._items()))
        options = {"continuation_checkpoint_interval": 0, "continuation_max_crashes": 99, **self.options}
        self.task = self.app.task(base=ContinuableTask, bind=True, name="task", **options)(self._function())
        self.linked = self.app.task(name="linked")(_linked)
        self.child = self.app.task(name="child")(_grow)
        self.app.finalize()
        self.first = self._first()

    def __str__(self) -> str:
        proof = "same machine" if self.is_provable else "other machine"
        return f"{type(self).__name__} {self.broker} {proof}{'' if self.is_atomic else ' key-value'}"

    def run(self, task: Any, world: World) -> Any:
        """The task's body."""
        nonce = world.body()
        token = task.step("call", world.effect, "call")
        for item in task.iterate("items", range(self.items)):
            self.on_item(world, item)
        return [token, nonce]

    def on_item(self, world: World, item: int) -> None:
        """One item: the first time that the first is done the worker is told to stop."""
        is_first = f"item{item}" not in world.promises.runs
        world.effect(f"item{item}")
        if is_first and item == 0:
            world.stop()

    def effects_of(self, step: str) -> frozenset[str]:
        """What the body does in a step."""
        return self._items() if step == "items" else frozenset((step,)) - self.waits

    def at_end(self, promises: Promises) -> None:
        """Check what is this scenario's own."""

    def key(self) -> Any:
        """What the future depends on of what it keeps itself."""

    def _items(self) -> frozenset[str]:
        return frozenset(f"item{number}" for number in range(self.items))

    def _function(self) -> Callable[..., Any]:
        def function(task: Any) -> Any:
            return self.run(task, Now.world)

        return function

    def _first(self) -> Message:
        sent: list[Message] = []
        Now.world = SimpleNamespace(io=lambda label, act: act(), publish=sent.append, scenario=self)  # type: ignore[assignment]
        self.task.apply_async(task_id=TASK_ID, link=self.linked.s())
        return sent[0]


class Plain(Scenario):
    """A call step and two items; stopped once, in the first item."""


class Short(Plain):
    """The same with one item."""

    items = 1


class Tiny(Scenario):
    """A call step and the return value, and nobody stops it."""

    items = 0


class Seldom(Plain):
    """The same; saved only at the end of each step and when it is left."""

    repeats_for_each = 2
    options = {"continuation_checkpoint_interval": 1000}


class Raising(Scenario):
    """Raises at its first item, always: resumes after the first time, for it got on, and fails after the second."""

    ends = frozenset((states.FAILURE,))
    repeats = 1
    items = 1

    def on_item(self, world: World, item: int) -> None:
        world.effect(f"item{item}")
        raise ValueError("simulated")

    def at_end(self, promises: Promises) -> None:
        if promises.result != "ValueError":
            promises.violated(1, f"it failed with {promises.result} and not with its own error")


class Retrying(Scenario):
    """Asks once to be retried."""

    repeats = 1
    items = 1

    def on_item(self, world: World, item: int) -> None:
        is_first = f"item{item}" not in world.promises.runs
        world.effect(f"item{item}")
        if is_first:
            raise self.task.retry(countdown=5)


class Rejecting(Scenario):
    """Gives its message back once."""

    repeats = 1
    items = 1

    def on_item(self, world: World, item: int) -> None:
        is_first = f"item{item}" not in world.promises.runs
        world.effect(f"item{item}")
        if is_first:
            raise Reject("simulated", requeue=True)


class RejectingLate(Rejecting):
    """Stopped in its first item, and so resumed by a message; gives that back in the third, when it has got on."""

    items = 3

    def on_item(self, world: World, item: int) -> None:
        is_first = f"item{item}" not in world.promises.runs
        Scenario.on_item(self, world, item)
        if is_first and item == self.items - 1:
            raise Reject("simulated", requeue=True)

    def key(self) -> Any:
        """Whether the next time is the second."""
        return min(Now.world.promises.runs.get("item2", 0), 2)


class Revoked(Plain):
    """Revoked and terminated, at any time while it runs."""

    ends = frozenset((states.REVOKED, states.SUCCESS))
    items = 1
    is_revocable = True


class Forgotten(Revoked):
    """The same, and all workers that knew of it have been started again."""

    is_remembered = False


class Failing(Scenario):
    """Raises once, and is not to resume from that."""

    ends = frozenset((states.FAILURE, states.SUCCESS))
    items = 1
    options = {"continuation_resume_errors_after_advancing": False}

    def on_item(self, world: World, item: int) -> None:
        is_first = f"item{item}" not in world.promises.runs
        world.effect(f"item{item}")
        if is_first:
            raise ValueError("simulated")


class Overwritten(Raising):
    """The same as Raising; what a frozen execution stores late counts."""

    is_fenceless = True


class Backlogged(Plain):
    """Its queue is never empty: a message of its own that is lost is not missed by counting."""

    backlog = 1


class Losing(Plain):
    """The store may lose the record."""

    store_faults = ("lose",)


class Looping(Scenario):
    """Kills its process at its first item, always."""

    ends = frozenset((states.FAILURE,))
    items = 1
    limit = 2
    repeats = limit - 1
    has_limit = True
    options = {"continuation_max_crashes": limit}

    def on_item(self, world: World, item: int) -> None:
        world.effect(f"item{item}")
        world.die()

    def at_end(self, promises: Promises) -> None:
        if promises.result != "CrashLoopError":
            promises.violated(7, f"it failed with {promises.result}")
        runs = promises.runs.get("item0", 0)
        # A fault between the taking of the record and the counting of the loss costs the count.
        faults = promises.world.losses
        if not self.limit - faults <= runs <= self.limit + faults:
            promises.violated(7, f"it killed its process {runs} times, {self.limit} are the limit")


class Falling(Scenario):
    """Brings down its worker once, in its one item."""

    repeats = 1
    items = 1

    def on_item(self, world: World, item: int) -> None:
        is_first = f"item{item}" not in world.promises.runs
        world.effect(f"item{item}")
        if is_first:
            world.fall()


class Stopping(Scenario):
    """Is killed each time its worker stops, three times: that is not a crash loop."""

    items = 1
    times = 3
    repeats = times
    has_limit = True
    options = {"continuation_max_crashes": 2}

    def on_item(self, world: World, item: int) -> None:
        runs = world.promises.runs.get("item0", 0)
        world.effect(f"item{item}")
        if runs < self.times:
            world.stop()
            world.die()

    def key(self) -> Any:
        return min(Now.world.promises.runs.get("item0", 0), self.times + 1)


class Scattered(Scenario):
    """Kills its process at each of two items: it gets on, so that is not a crash loop."""

    repeats = 2
    has_limit = True
    options = {"continuation_max_crashes": 3}  # and one that a fault may add

    def on_item(self, world: World, item: int) -> None:
        is_first = f"item{item}" not in world.promises.runs
        world.effect(f"item{item}")
        if is_first:
            world.die()


class Answered(Scenario):
    """Waits for a delivery, which comes at any time."""

    items = 0
    waits = frozenset(("answer",))
    timeout: float | None = None
    errands = ((Errand("deliver", deliver("yes"), counts_at_once=True),),)

    def run(self, task: Any, world: World) -> Any:
        """The task's body."""
        nonce = world.body()
        token = task.step("call", world.effect, "call")
        return [token, nonce, task.wait_for("answer", timeout=self.timeout, default="nothing")]

    def at_end(self, promises: Promises) -> None:
        """What was accepted is returned, and nothing else."""
        if promises.state == states.SUCCESS and promises.result[2] not in self.answers(promises.world.clients):
            promises.violated(1, f"{promises.result[2]!r} was returned; accepted was {promises.world.clients.accepted}")

    def answers(self, clients: Clients) -> set[str]:
        """What the wait may return."""
        return {"yes"}


class AnsweredInTime(Answered):
    """Waits for so long only."""

    timeout = 30.0

    def answers(self, clients: Clients) -> set[str]:
        """What the wait may return."""
        return {"yes"} if "deliver" in clients.accepted else {"nothing"}


class AnsweredTwice(Answered):
    """Two clients deliver, and not the same."""

    errands = (
        (Errand("deliver yes", deliver("yes"), counts_at_once=True),),
        (Errand("deliver no", deliver("no"), counts_at_once=True),),
    )

    def answers(self, clients: Clients) -> set[str]:
        """What the wait may return."""
        answers = {name.partition(" ")[2] for name in clients.accepted}
        return answers if len(answers) == 1 else set()


class Paused(Plain):
    """Paused at any time, and resumed at any later time."""

    errands = ((Errand("pause", pause), Errand("resume", resume)),)


class PausedShort(Paused):
    """The same with one item."""

    items = 1


class PausedWaiting(AnsweredInTime):
    """A task that waits is paused and resumed; nothing comes."""

    errands = ((Errand("pause", pause), Errand("resume", resume)),)


class Cancelled(Plain):
    """Cancelled at any time."""

    ends = frozenset((states.REVOKED, states.SUCCESS))
    items = 1
    errands = ((Errand("cancel", cancel),),)

    def at_end(self, promises: Promises) -> None:
        """A task that was cancelled is revoked, and its callbacks are not called."""
        record = promises.world.record()
        is_cancelled = record is not None and record.fence.status == Status.CANCELLED
        if record is not None and is_cancelled != (promises.state == states.REVOKED):
            promises.violated(1, f"it ended as {promises.state}, and the record as {record and record.fence.status}")
        if promises.state == states.REVOKED and promises.links:
            promises.violated(6, "a cancelled task's callback was dispatched")


class CancelledWaiting(Cancelled):
    """The same of a task that waits for what never comes."""

    ends = frozenset((states.REVOKED,))
    items = 0
    waits = Answered.waits
    timeout = None
    run = Answered.run


class CancelledPaused(Cancelled):
    """Paused, and cancelled by another."""

    ends = frozenset((states.REVOKED, states.SUCCESS))
    errands = ((Errand("pause", pause),), (Errand("cancel", cancel),))


class Retried(Failing):
    """Fails once, and is retried by an operator."""

    ends = frozenset((states.SUCCESS,))
    repeats = 1
    errands = ((Errand("retry", retry, has_failed, counts_at_once=True),),)


class RetriedTwice(Retried):
    """Two operators retry it."""

    errands = tuple((Errand(f"retry {who}", retry, has_failed, counts_at_once=True),) for who in "ab")


class Parent(Scenario):
    """Waits for a child's result, and may not be told of it."""

    items = 0
    waits = frozenset(("child",))
    is_prompt = True
    errands = ((Errand("child ends", end_child, is_child_started, counts_at_once=True),),)

    def run(self, task: Any, world: World) -> Any:
        """The task's body."""
        nonce = world.body()
        token = task.step("call", world.effect, "call")
        return [token, nonce, task.wait_for_results("child", self.child.s().set(task_id=CHILD_ID))]

    def at_end(self, promises: Promises) -> None:
        """The child's result is returned."""
        if promises.state == states.SUCCESS and promises.result[2] != "grown":
            promises.violated(1, f"the child's result was {promises.result[2]!r}")


def _linked(value: Any) -> None:
    """Never run: only its message counts."""


def _grow() -> None:
    """Never run either: a client stores its result."""


def _app() -> Celery:
    app = Celery(f"exploration{next(_numbers)}", set_as_current=False)
    app.task = partial(app.task, shared=False)
    app.conf.update(
        task_default_queue="tasks",
        continuation_store="memory",
        task_publish_retry=False,
        worker_hijack_root_logger=False,
    )
    app.backend_cls = SimBackend
    app._backend_cache = SimBackend(app)
    app.connection_for_write = lambda **kwargs: Connection()
    app.amqp._producer_pool = Producer(Connection())
    app.amqp.Producer = Producer
    app.events.default_dispatcher = NoEvents()
    factory._opened.setdefault(app, {})["memory"] = SimStore()
    return app
