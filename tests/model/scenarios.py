"""Tasks to be cut off, each with its possible outcomes."""

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
    is_between_executions,
    is_child_started,
    pause,
    resume,
    retry,
    revoke_as_celery,
)
from tests.model.promises import Promises
from tests.model.stand_ins import Connection, Message, NoEvents, Now, Producer, SimBackend, SimStore
from tests.model.world import TASK_ID, World

_numbers = itertools.count()

BROKERS = ("amqp", "filesystem", "redis")


class Scenario:
    """A task, and the world that it runs in.

    Args:
        broker: what happens to unacknowledged messages when their connection is lost: ``amqp`` returns them at
            once, ``filesystem`` loses them, ``redis`` returns them at any later time.
        is_provable: whether workers can see each other's processes.
        is_atomic: whether the result backend reads and writes under one lock.
    """

    #: The states that the task may end in.
    ends = frozenset((states.SUCCESS,))
    #: Repetitions without a fault.
    repeats = 0
    #: Repetitions that each fault may cause: the current item, and unsaved items.
    repeats_for_each = 1
    items = 2
    #: Whether the task may be revoked.
    is_revocable = False
    #: Whether a hard time limit may end an execution.
    is_limited = False
    #: Whether the processes cannot send how a task has ended to their main process.
    is_unsendable = False
    #: Whether all workers remember the revocation.
    is_remembered = True
    #: Whether a frozen execution, once it wakes, may overwrite a FAILURE in the result backend.  Celery's backends
    #: cannot refuse that, so it can happen to every task; the other scenarios ignore it.
    is_fenceless = False
    #: Messages of other tasks in its queue.
    backlog = 0
    #: What may happen to a call of the store: it is unavailable, its driver writes twice, or it loses the record.
    store_faults: tuple[str, ...] = ("away", "twice")
    #: Whether crashes may reach their limit.
    has_limit = False
    #: The actions of clients: several concurrent clients, each with a sequence of actions.
    errands: tuple[tuple[Errand, ...], ...] = ()
    #: Whether clients begin their actions before any time passes.
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
        """Do one item; stop the worker the first time that the first item is done."""
        is_first = f"item{item}" not in world.promises.runs
        world.effect(f"item{item}")
        if is_first and item == 0:
            world.stop()

    def effects_of(self, step: str) -> frozenset[str]:
        """Return the effects of a step."""
        return self._items() if step == "items" else frozenset((step,)) - self.waits

    def at_end(self, promises: Promises) -> None:
        """Check what only this scenario promises."""

    def key(self) -> Any:
        """Return the part of the scenario's own state that the future depends on."""

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
    """A call step and the return value, without a stop."""

    items = 0


class Seldom(Plain):
    """The same; saved only at the end of each step and when an execution ends."""

    repeats_for_each = 2
    options = {"continuation_checkpoint_interval": 1000}


class Raising(Scenario):
    """Always raises at its first item: resumes the first time, because it made progress, and fails the second time."""

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
    """Calls retry once."""

    repeats = 1
    items = 1

    def on_item(self, world: World, item: int) -> None:
        is_first = f"item{item}" not in world.promises.runs
        world.effect(f"item{item}")
        if is_first:
            raise self.task.retry(countdown=5)


class Rejecting(Scenario):
    """Requeues its message once."""

    repeats = 1
    items = 1

    def on_item(self, world: World, item: int) -> None:
        is_first = f"item{item}" not in world.promises.runs
        world.effect(f"item{item}")
        if is_first:
            raise Reject("simulated", requeue=True)


class RejectingLate(Rejecting):
    """Stopped in its first item, and so resumed by a message; requeues that in the third, after making progress."""

    items = 3

    def on_item(self, world: World, item: int) -> None:
        is_first = f"item{item}" not in world.promises.runs
        Scenario.on_item(self, world, item)
        if is_first and item == self.items - 1:
            raise Reject("simulated", requeue=True)

    def key(self) -> Any:
        """Return how often the third item has run, up to twice."""
        return min(Now.world.promises.runs.get("item2", 0), 2)


class Revoked(Plain):
    """Revoked and terminated, at any time while it runs."""

    ends = frozenset((states.REVOKED, states.SUCCESS))
    items = 1
    is_revocable = True


class Forgotten(Revoked):
    """The same, and all workers that knew of the revocation have been restarted."""

    is_remembered = False


class Limited(Plain):
    """A hard time limit ends an execution, at any time while it runs."""

    ends = frozenset((states.FAILURE, states.SUCCESS))
    items = 1
    is_limited = True


class LimitedRaising(Raising):
    """The same; the task fails by itself, too."""

    is_limited = True

    def at_end(self, promises: Promises) -> None:
        """Check that it failed for one of the two reasons."""
        if promises.result not in ("ValueError", "TimeLimitExceeded"):
            promises.violated(1, f"it failed with {promises.result}")


class Unsendable(Plain):
    """The main process learns of each execution that its end could not be sent."""

    ends = frozenset((states.FAILURE, states.SUCCESS))
    items = 1
    is_unsendable = True

    def at_end(self, promises: Promises) -> None:
        """Check that it fails only while the main process cannot reach the store."""
        if promises.state == states.FAILURE and not promises.world.errors:
            promises.violated(13, "an execution that had handed over was failed")


class Tracked(Raising):
    """Its state is STARTED while it runs."""

    options = {"track_started": True}


class RevokedElsewhere(Plain):
    """Celery itself stores REVOKED between two executions; the record says nothing of it."""

    ends = frozenset((states.REVOKED, states.SUCCESS))
    items = 1
    errands = ((Errand("revoke", revoke_as_celery, is_between_executions, counts_at_once=True),),)


class Failing(Scenario):
    """Raises once an error that it does not resume from."""

    ends = frozenset((states.FAILURE, states.SUCCESS))
    items = 1
    options = {"continuation_resume_errors_after_advancing": False}

    def on_item(self, world: World, item: int) -> None:
        is_first = f"item{item}" not in world.promises.runs
        world.effect(f"item{item}")
        if is_first:
            raise ValueError("simulated")


class Overwritten(Raising):
    """The same as Raising; a late result of a frozen execution counts."""

    is_fenceless = True


class Backlogged(Plain):
    """Its queue is never empty, so counting messages does not detect that its own is lost."""

    backlog = 1


class Losing(Plain):
    """The store may lose the record."""

    store_faults = ("lose",)


class Looping(Scenario):
    """Always kills its process at its first item."""

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
        # A fault between taking the record and counting the crash loses the count.
        faults = promises.world.losses
        if not self.limit - faults <= runs <= self.limit + faults:
            promises.violated(7, f"it killed its process {runs} times, {self.limit} are the limit")


class Falling(Scenario):
    """Kills its worker once, in its only item."""

    repeats = 1
    items = 1

    def on_item(self, world: World, item: int) -> None:
        is_first = f"item{item}" not in world.promises.runs
        world.effect(f"item{item}")
        if is_first:
            world.fall()


class Stopping(Scenario):
    """Is killed at each stop of its worker, three times: not a crash loop."""

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
    """Kills its process at each of two items: it makes progress, so this is not a crash loop."""

    repeats = 2
    has_limit = True
    options = {"continuation_max_crashes": 3}  # includes one that a fault may add

    def on_item(self, world: World, item: int) -> None:
        is_first = f"item{item}" not in world.promises.runs
        world.effect(f"item{item}")
        if is_first:
            world.die()


class Answered(Scenario):
    """Waits for a delivery, which may come at any time."""

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
        """Check that the task returns an accepted delivery, and nothing else."""
        if promises.state == states.SUCCESS and promises.result[2] not in self.answers(promises.world.clients):
            promises.violated(1, f"{promises.result[2]!r} was returned; accepted was {promises.world.clients.accepted}")

    def answers(self, clients: Clients) -> set[str]:
        """Return the possible values of the wait."""
        return {"yes"}


class AnsweredInTime(Answered):
    """Waits with a timeout."""

    timeout = 30.0

    def answers(self, clients: Clients) -> set[str]:
        """Return the possible values of the wait."""
        return {"yes"} if "deliver" in clients.accepted else {"nothing"}


class AnsweredTwice(Answered):
    """Two clients deliver different values."""

    errands = (
        (Errand("deliver yes", deliver("yes"), counts_at_once=True),),
        (Errand("deliver no", deliver("no"), counts_at_once=True),),
    )

    def answers(self, clients: Clients) -> set[str]:
        """Return the possible values of the wait."""
        answers = {name.partition(" ")[2] for name in clients.accepted}
        return answers if len(answers) == 1 else set()


class Paused(Plain):
    """Paused at any time, and resumed at any later time."""

    errands = ((Errand("pause", pause), Errand("resume", resume)),)


class PausedShort(Paused):
    """The same with one item."""

    items = 1


class PausedWaiting(AnsweredInTime):
    """A waiting task is paused and resumed; no delivery comes."""

    errands = ((Errand("pause", pause), Errand("resume", resume)),)


class Cancelled(Plain):
    """Cancelled at any time."""

    ends = frozenset((states.REVOKED, states.SUCCESS))
    items = 1
    errands = ((Errand("cancel", cancel),),)

    def at_end(self, promises: Promises) -> None:
        """Check that a cancelled task is revoked, and that its callbacks are not called."""
        record = promises.world.record()
        is_cancelled = record is not None and record.fence.status == Status.CANCELLED
        if record is not None and is_cancelled != (promises.state == states.REVOKED):
            promises.violated(1, f"it ended as {promises.state}, and the record as {record and record.fence.status}")
        if promises.state == states.REVOKED and promises.links:
            promises.violated(6, "a cancelled task's callback was dispatched")


class CancelledWaiting(Cancelled):
    """Cancelled while it waits for a delivery that never comes."""

    ends = frozenset((states.REVOKED,))
    items = 0
    waits = Answered.waits
    timeout = None
    run = Answered.run


class CancelledPaused(Cancelled):
    """Paused by one client, and cancelled by another."""

    ends = frozenset((states.REVOKED, states.SUCCESS))
    errands = ((Errand("pause", pause),), (Errand("cancel", cancel),))


class Retried(Failing):
    """Fails once, and is retried by an operator."""

    ends = frozenset((states.SUCCESS,))
    repeats = 1
    errands = ((Errand("retry", retry, has_failed, counts_at_once=True),),)


class RetriedTwice(Retried):
    """Retried by two operators."""

    errands = tuple((Errand(f"retry {who}", retry, has_failed, counts_at_once=True),) for who in "ab")


class Parent(Scenario):
    """Waits for a child's result; the notification may be lost."""

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
        """Check that the child's result is returned."""
        if promises.state == states.SUCCESS and promises.result[2] != "grown":
            promises.violated(1, f"the child's result was {promises.result[2]!r}")


def _linked(value: Any) -> None:
    """Never runs: only its message counts."""


def _grow() -> None:
    """Never runs either: a client stores its result."""


def _app() -> Celery:
    app = Celery(f"exploration{next(_numbers)}", set_as_current=False)
    app.task = partial(app.task, shared=False)
    app.conf.update(
        task_default_queue="tasks",
        continuation_store="memory",
        continuation_grace_period=0.001,  # a stopping execution does not wait for its store
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
