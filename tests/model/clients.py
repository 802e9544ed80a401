"""Processes outside of the workers, which deliver, pause, resume, cancel and retry, and tell of a child's end.

A client begins at any call of anybody else, and its calls are cut off as theirs are.  It may be put aside between two
of them, so that others run in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    """Something that somebody outside does.

    Attributes:
        name: of what is done.
        act: does it, in the client's process.
        may_begin: whether there is anything to be done yet.
        counts_at_once: whether it counts from its first accepted write on.  Else whoever was cut off, or raised, does
            it again until it returns.
    """

    name: str
    act: Callable[[World], None]
    may_begin: Callable[[World], bool] = _always
    counts_at_once: bool = False


class Process:
    """The process of a client; it answers what the world asks a worker."""

    name = KIND
    is_up = True
    is_crashed = is_frozen = lapsed = was_frozen = False


class Clients:
    """Those of one history.

    Args:
        world: the history.
        errands: what is to be done: several clients at once, each one thing after the other.

    Attributes:
        aside: the clients that were put aside.
        accepted: the errands of which a write was accepted.
        refused: those that ended with a DeliveryError.
        returned: those that ended without one.
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
        """What clients may do while somebody else is at work, or nobody."""
        found: Options = [(f"{actor.errand} goes on", lambda a=actor: self._go_on(a)) for actor in self.aside]  # type: ignore[misc]
        busy = [left for left, _ in self._at.values()]
        for left in self._left:
            if left and all(left is not one for one in busy) and left[0].may_begin(self._world):
                found.append((f"{left[0].name} begins", lambda one=left: self._begin(one)))  # type: ignore[misc]
        return found

    def own_options(self, actor: Actor) -> Options:
        """What may happen to a client between two of its calls."""
        world = self._world
        found: Options = []
        if world.budget.has("switches"):
            found.append(("put aside", lambda: self._put_aside(actor)))
        if world.budget.has("crashes") and world.has_written:
            found.append(("crash client", lambda: self._crash(actor)))
        return found

    def wrote(self, actor: Actor, new: Record) -> None:
        """A write to the record was accepted."""
        if actor.kind == KIND:
            self.accepted.add(actor.errand)

    def key(self) -> Any:
        """What the future depends on."""
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
        """Its process ends: nothing of anybody's work is lost by that."""
        world = self._world
        world.budget = world.budget.less("crashes")
        world.stack.remove(actor)
        world.kill(actor)
        self._end_in_the_middle(*self._at.pop(actor))


def deliver(payload: str) -> Callable[[World], None]:
    """Return what delivers it to the wait "answer"."""
    return lambda world: control.deliver(TASK_ID, "answer", payload, app=world.app)


def pause(world: World) -> None:
    """As of :mod:`celery_continuations.control`, as are the others."""
    control.pause(TASK_ID, app=world.app)


def resume(world: World) -> None:
    """Take back the pause."""
    control.resume(TASK_ID, app=world.app)


def cancel(world: World) -> None:
    """End the task."""
    control.cancel(TASK_ID, app=world.app)


def retry(world: World) -> None:
    """Take up the failed task."""
    control.retry(TASK_ID, app=world.app)


def has_failed(world: World) -> bool:
    """Whether there is something to retry."""
    record = world.record()
    return record is not None and record.fence.status == Status.FAILED


def is_child_started(world: World) -> bool:
    """Whether the message of the child is out."""
    return CHILD_ID in world.children


def end_child(world: World) -> None:
    """The child's result is stored, and its parent told."""
    world.end_child(CHILD_ID, "grown")
    control.wake(TASK_ID, CHILD_ID, app=world.app)
