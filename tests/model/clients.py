"""Processes outside the workers that deliver, pause, resume, cancel and retry, or store a child's result.

A client can begin at any call of another actor, and its calls are cut off in the same way.  It can be suspended
between two calls, so that other actors run in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import states
from kombu.exceptions import OperationalError

from celery_continuations import control
from celery_continuations.exceptions import DeliveryError, StoreError
from celery_continuations.stores import Record, Status

if TYPE_CHECKING:
    from tests.model.world import Actor, World

Options = list[tuple[str, Callable[[], None]]]

KIND = "client"

TASK_ID, CHILD_ID = "task", "child"


def _always(world: World) -> bool:
    return True


@dataclass(frozen=True)
class Errand:
    """An action of a client outside the workers.

    Attributes:
        name: of the action.
        act: performs it, in the client's process.
        may_begin: whether the action is possible yet.
        counts_at_once: whether it counts from its first accepted write on.  Otherwise a client that was cut off or
            raised repeats it until it returns.
    """

    name: str
    act: Callable[[World], None]
    may_begin: Callable[[World], bool] = _always
    counts_at_once: bool = False


class Process:
    """The process of a client, with the interface of a worker that the world uses."""

    name = KIND
    is_up = True
    is_crashed = is_frozen = lapsed = was_frozen = False


class Clients:
    """The clients of one history.

    Args:
        world: the history.
        errands: the actions: several concurrent clients, each with a sequence of actions.

    Attributes:
        aside: the suspended clients.
        accepted: the errands with an accepted write.
        refused: the errands that ended with a DeliveryError.
        returned: the errands that ended without one.
    """

    def __init__(self, world: World, errands: tuple[tuple[Errand, ...], ...]) -> None:
        self._world = world
        self._left = [list(one) for one in errands]
        self._at: dict[Actor, tuple[list[Errand], Errand]] = {}
        self.aside: list[Actor] = []
        self.accepted: set[str] = set()
        self.refused: set[str] = set()
        self.returned: set[str] = set()

    def options(self) -> Options:
        """Return what clients may do now, whether or not another actor is running."""
        found: Options = [(f"{actor.errand} continues", lambda a=actor: self._go_on(a)) for actor in self.aside]  # type: ignore[misc]
        busy = [left for left, _ in self._at.values()]
        for left in self._left:
            if left and all(left is not one for one in busy) and left[0].may_begin(self._world):
                found.append((f"{left[0].name} begins", lambda one=left: self._begin(one)))  # type: ignore[misc]
        return found

    def own_options(self, actor: Actor) -> Options:
        """Return what may happen to a client between two of its calls."""
        world = self._world
        found: Options = []
        if world.budget.has("switches"):
            found.append(("put aside", lambda: self._put_aside(actor)))
        if world.budget.has("crashes") and world.has_written:
            found.append(("crash client", lambda: self._crash(actor)))
        return found

    def wrote(self, actor: Actor, new: Record) -> None:
        """Note an accepted write to the record."""
        if actor.kind == KIND:
            self.accepted.add(actor.errand)

    def key(self) -> Any:
        """Return what the future depends on."""
        record = self._world.record()
        known = record.fence if record else None
        return (
            [[one.name for one in left] for left in self._left], sorted(self.accepted),
            sorted(self.refused), sorted(self.returned), [actor.told(known) for actor in self.aside],
        )  # fmt: skip

    def _begin(self, left: list[Errand]) -> None:
        errand = left[0]
        actor = self._world.start(KIND, Process(), lambda: self._run(actor, left, errand))
        actor.errand = errand.name
        self._at[actor] = left, errand

    def _run(self, actor: Actor, left: list[Errand], errand: Errand) -> None:
        try:
            errand.act(self._world)
        except DeliveryError:
            if errand.name not in self.accepted:
                self.refused.add(errand.name)
            left.pop(0)
        except (StoreError, OperationalError):
            self._end_in_the_middle(left, errand)
        else:
            self.returned.add(errand.name)
            left.pop(0)
        del self._at[actor]

    def _end_in_the_middle(self, left: list[Errand], errand: Errand) -> None:
        if errand.counts_at_once and errand.name in self.accepted:
            left.pop(0)

    def _put_aside(self, actor: Actor) -> None:
        self._world.budget = self._world.budget.less("switches")
        self._world.stack.remove(actor)
        self.aside.append(actor)

    def _go_on(self, actor: Actor) -> None:
        self.aside.remove(actor)
        self._world.stack.append(actor)

    def _crash(self, actor: Actor) -> None:
        """End its process: no task's work is lost."""
        world = self._world
        world.budget = world.budget.less("crashes")
        world.stack.remove(actor)
        world.kill(actor)
        self._end_in_the_middle(*self._at.pop(actor))


def deliver(payload: str) -> Callable[[World], None]:
    """Return an action that delivers the value to the wait "answer"."""
    return lambda world: control.deliver(TASK_ID, "answer", payload, app=world.app)


def pause(world: World) -> None:
    """Pause the task."""
    control.pause(TASK_ID, app=world.app)


def resume(world: World) -> None:
    """Resume the paused task."""
    control.resume(TASK_ID, app=world.app)


def cancel(world: World) -> None:
    """Cancel the task."""
    control.cancel(TASK_ID, app=world.app)


def retry(world: World) -> None:
    """Retry the failed task."""
    control.retry(TASK_ID, app=world.app)


def revoke_as_celery(world: World) -> None:
    """Store REVOKED as any worker of Celery 5.7 does for a task that it does not run; it knows no record."""
    world.app.backend.mark_as_revoked(TASK_ID, "revoked")


def is_between_executions(world: World) -> bool:
    """Whether the task was handed over, and its message has not been received."""
    record = world.record()
    is_queued = record is not None and record.fence.status == Status.QUEUED and record.fence.generation > 0
    return is_queued and world.promises.state == states.RETRY and all(actor.kind == KIND for actor in world.stack)


def has_failed(world: World) -> bool:
    """Whether there is something to retry."""
    record = world.record()
    return record is not None and record.fence.status == Status.FAILED


def is_child_started(world: World) -> bool:
    """Whether the child's message has been published."""
    return CHILD_ID in world.children


def end_child(world: World) -> None:
    """Store the child's result, and notify its parent."""
    world.end_child(CHILD_ID, "grown")
    control.wake(TASK_ID, CHILD_ID, app=world.app)
