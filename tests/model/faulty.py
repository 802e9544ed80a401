"""Ways to break a rule of the protocol: the same function, over a store or with a claim that does something else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from unittest import mock

from celery_continuations.core.snapshot import Snapshot
from celery_continuations.execution import leaving
from celery_continuations.protocol import claim
from celery_continuations.protocol.owned import OVERDUE_AFTER, OwnedRecord
from celery_continuations.stores.base import Command, Fence, Record, Status, Store, Update

#: Makes a function that breaks a rule from the one that keeps it.
Breaking = Callable[[Any], Any]


# -- stores that do something else


class Faulty:
    """A store that does what another one does; the classes below say what else."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        return self.store.compare_and_swap(task_id, expected, self.changed(expected, update))

    def changed(self, expected: Fence | None, update: Update) -> Update:
        """Return what is written instead of ``update``."""
        return update


class Heedless(Faulty):
    """Writes over whatever it finds."""

    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        found = self.store.read(task_id)
        return self.store.compare_and_swap(task_id, found.fence if found else expected, update)


class Pretending(Faulty):
    """Says that it has queued the record, or written its inbox, and has not."""

    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        is_pretended = update.fence.status == Status.QUEUED or update.inbox is not None
        return is_pretended or super().compare_and_swap(task_id, expected, update)


class NeverMissing(Faulty):
    """Creates no record."""

    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        return expected is not None and super().compare_and_swap(task_id, expected, update)


class Uncounting(Faulty):
    """Does not count how often a message was overdue."""

    def changed(self, expected: Fence | None, update: Update) -> Update:
        return dataclasses.replace(update, fence=update.fence._replace(republished=0), due_in=OVERDUE_AFTER)


class Forgetting(Faulty):
    """Loses a delivery to a task that has not started."""

    def changed(self, expected: Fence | None, update: Update) -> Update:
        return update if update.expires_in is None else dataclasses.replace(update, inbox=None)


class KeepingTheFence(Faulty):
    """Writes the rest of an update, but not its fencing token."""

    def changed(self, expected: Fence | None, update: Update) -> Update:
        return dataclasses.replace(update, fence=expected or update.fence)


class Outdated(Faulty):
    """Writes the snapshot that was read first, where an update says nothing of it."""

    first: str | None = None

    def read(self, task_id: str) -> Record | None:
        found = self.store.read(task_id)
        if self.first is None and found is not None:
            self.first = found.snapshot or Snapshot().dumps()
        return found

    def changed(self, expected: Fence | None, update: Update) -> Update:
        return dataclasses.replace(update, snapshot=update.snapshot or self.first)


class Commanding(Faulty):
    """Changes a running execution's record directly, instead of giving it a command."""

    def changed(self, expected: Fence | None, update: Update) -> Update:
        generation = update.fence.generation
        if update.fence.command == Command.PAUSE:
            return Update(Fence(generation, Status.PAUSED))
        if update.fence.command == Command.CANCEL:
            return Update(Fence(generation, Status.CANCELLED), "", "", "", "", expires_in=3600.0)
        return update


# -- ways to break a rule


def over(faulty: type[Faulty]) -> Breaking:
    """Run a function over a store that does something else."""
    return lambda original: lambda store, *args, **kwargs: original(faulty(store), *args, **kwargs)


def owning(faulty: type[Faulty]) -> Breaking:
    """Run a method of an owned record over a store that does something else."""

    def breaking(original: Any) -> Any:
        def method(self: OwnedRecord, *args: Any, **kwargs: Any) -> Any:
            with mock.patch.object(self, "_store", faulty(self._store)):
                return original(self, *args, **kwargs)

        return method

    return breaking


def claiming(changes: Callable[[Any], dict[str, Any]]) -> Breaking:
    """Run a method of a claim that knows something else."""
    return lambda original: lambda self, *args: original(dataclasses.replace(self, **changes(self)), *args)


def given(**changes: Any) -> Breaking:
    """Pass other arguments."""
    return lambda original: lambda *args, **kwargs: original(*args, **{**kwargs, **changes})


def despite(error: type[Exception]) -> Breaking:
    """Go on after an error."""

    def breaking(original: Any) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            with suppress(error):
                return original(*args, **kwargs)

        return function

    return breaking


def instead(replacement: Any) -> Breaking:
    """Do something else."""
    return lambda _: replacement


def leaving_alone(is_left: Callable[[Record], bool]) -> Breaking:
    """Do nothing about some records."""

    def breaking(original: Any) -> Any:
        def function(store: Store, task_id: str, *args: Any, **kwargs: Any) -> Any:
            record = store.read(task_id)
            return None if record is not None and is_left(record) else original(store, task_id, *args, **kwargs)

        return function

    return breaking


def never_ended(_: Record | None) -> None:
    return None


def claims_what_has_ended(original: Any) -> Any:
    never = claiming(lambda _: {"ended": never_ended})(original)
    return lambda self, record: (never if record is None else original)(self, record)


def claims_own_as_anothers(original: Any) -> Any:
    def of_found(self: Any, record: Record | None) -> OwnedRecord | None:
        if record is not None and record.fence.owner == self.owner:
            raise claim._Stale
        found: OwnedRecord | None = original(self, record)
        return found

    return of_found


def superseding(of: Callable[[Any, Fence], Fence]) -> Breaking:
    return lambda original: lambda self, known: of(original(self, known), known)


def takes_a_command_for_another_owner(original: Any) -> Any:
    def save(self: OwnedRecord, snapshot: str) -> None:
        with mock.patch.object(self, "_is_own", lambda found: found == self.fence):
            original(self, snapshot)

    return save


def waits_for_what_is_there(original: Any) -> Any:
    return lambda self, snapshot, due_in, is_there: original(self, snapshot, due_in, lambda inbox: False)


def written(rule: Callable[[Record | None, Update], bool]) -> Breaking:
    return lambda _: lambda self, found, update: rule(found, update)


def cancels_what_has_returned(original: Any) -> Any:
    def refuse_over(task_id: str, record: Record | None, ended: Any) -> None:
        original(task_id, dataclasses.replace(record, value=None) if record else None, ended)

    return refuse_over


def starts_before_its_claim(original: Any) -> Any:
    def owned(self: Any, flag: Any) -> Any:
        self._message.report_started()
        return original(self, flag)

    return owned


def publishes_at_once(original: Any) -> Any:
    def enter(self: leaving.Leaving) -> None:
        original(self)
        self.publish()

    return enter
