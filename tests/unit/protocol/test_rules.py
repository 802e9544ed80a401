"""Each numbered rule of the protocol, on records in memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from celery_continuations.core.outcome import Outcome
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.exceptions import DeliveryError
from celery_continuations.protocol import claim as claiming
from celery_continuations.protocol import commands
from celery_continuations.protocol.liveness import Loss
from celery_continuations.protocol.owned import OVERDUE_AFTER, OwnedRecord, Superseded
from celery_continuations.protocol.recovery import not_published, republish_overdue
from celery_continuations.protocol.recovery import recover as recover_record
from celery_continuations.stores.base import NOT_CLAIMABLE, Command, Fence, Record, Status, Tombstone, Update
from celery_continuations.stores.memory import MemoryStore
from celery_continuations.stores.message import MessageStore

SAVED = Snapshot().dumps()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock)


def never(*args: Any) -> None:
    return None


def unasked(*args: Any) -> Any:
    raise AssertionError(f"asked about {args}")


def claim(
    store: Any,
    generation: int,
    owner: str = "w/1/o",
    snapshot: str | None = None,
    ended: Callable[[Any], Any] | None = None,
    loss_of: Callable[[str], Any] = unasked,
    stores_results: bool = True,
) -> Any:
    if ended is None:
        ended = never if generation or store.read("id") else unasked
    return claiming.claim(
        store,
        "id",
        generation,
        owner,
        snapshot=snapshot,
        message=lambda: "message",
        ended=ended,
        loss_of=loss_of,
        stores_results=stores_results,
    )


def seen(owned: OwnedRecord) -> tuple[Fence, str | None]:
    return owned.fence, owned.snapshot


def at(store: Any, fence: Fence) -> OwnedRecord:
    return OwnedRecord(store, "id", fence, message=lambda: "message")


def recover(store: Any, loss: Loss | None, ended: Callable[[str | None], Any] = never) -> Any:
    return recover_record(store, "id", ended=ended, loss_of=lambda owner: loss)


def record(store: MemoryStore) -> Record:
    found = store.read("id")
    assert found is not None
    return found


def running(store: MemoryStore, owner: str = "w/1/o") -> OwnedRecord:
    owned = claim(store, 0, owner)
    owned.save(SAVED)
    assert isinstance(owned, OwnedRecord)
    return owned


def test_one_message_after_the_other_is_claimed_in_one_round_trip(store: MemoryStore, clock: Clock) -> None:
    first = claim(store, 0, "w/1/first")
    assert seen(first) == (Fence(1, Status.RUNNING, "w/1/first"), None)
    assert record(store).message == "message"
    first.queue("left", 60)
    assert first.fence == Fence(1, Status.QUEUED)
    assert record(store).due == clock.now + 60 + OVERDUE_AFTER
    second = claim(store, 1, "w/1/second", "carried")
    assert seen(second) == (Fence(2, Status.RUNNING, "w/1/second"), "carried")
    second.queue("left again", 0, "another")
    assert record(store).message == "another"
    assert seen(claim(store, 2)) == (Fence(3, Status.RUNNING, "w/1/o"), "left again"), "the message carries none"


def test_rule_1_a_message_whose_record_is_gone_is_trusted_unless_the_task_has_ended(store: MemoryStore) -> None:
    assert claim(store, 3, ended=lambda message: (Status.DONE, 60.0)) is None
    assert store.read("id") is None
    assert seen(claim(store, 3, snapshot="carried", ended=never)) == (Fence(4, Status.RUNNING, "w/1/o"), "carried")
    assert record(store).message == "message"


@pytest.mark.parametrize("status", sorted(NOT_CLAIMABLE))
def test_rule_2_what_has_ended_is_not_touched(store: MemoryStore, status: str) -> None:
    store.compare_and_swap("id", None, Update(Fence(2, status), "snapshot", "message"))
    for generation in (0, 1, 2, 3):
        assert claim(store, generation) is None
    assert store.read("id") == Record(Fence(2, status), "snapshot", "message")


def test_rule_3_a_message_older_than_the_last_claims_is_stale(store: MemoryStore) -> None:
    running(store).queue("left", 0)
    assert claim(store, 0) is None, "the first message again, while the second waits"
    second = claim(store, 1, "w/1/second").fence
    assert claim(store, 0) is None, "the first message again, while the second runs"
    assert record(store).fence == second


def test_rule_4_a_second_delivery_of_what_a_live_owner_works_on_ends(store: MemoryStore) -> None:
    owned = running(store)
    asked: list[str] = []
    assert claim(store, 0, "w/2/second", loss_of=asked.append) is None
    assert asked == ["w/1/o"]
    owned.save("it continues")


def test_rule_23_what_an_owner_saves_until_its_record_is_taken_is_not_lost(store: MemoryStore) -> None:
    """It was frozen past its lease, and wakes after a sweep has read its record."""
    owned = running(store)
    read = store.read

    def read_and_save(task_id: str) -> Record | None:
        found = read(task_id)
        store.read = read  # type: ignore[method-assign]
        owned.save(SAVED.replace("{", '{"executions": 7, ', 1))
        return found

    store.read = read_and_save  # type: ignore[method-assign]
    recovered = recover(store, Loss.CRASH)
    assert recovered is not None
    assert Snapshot.loads(str(recovered.snapshot)).executions == 7
    assert Snapshot.loads(str(record(store).snapshot)).losses == (1, 0)


def test_rule_8_who_was_taken_for_dead_leaves_nothing(store: MemoryStore) -> None:
    """It was frozen past its lease, and stops when it wakes: another worker has queued the record."""
    owned = running(store)
    assert recover(store, Loss.CRASH)
    recovered = record(store)
    for write in (lambda: owned.queue("newer", 0), lambda: owned.save("newer")):
        with pytest.raises(Superseded):
            write()
    assert record(store) == recovered


def test_rule_5_a_dead_owner_may_have_stored_its_result(store: MemoryStore, clock: Clock) -> None:
    running(store)
    seen: list[str | None] = []

    def ended(found: Record | None) -> tuple[str, float]:
        seen.append(found and found.message)
        return Status.DONE, 60.0

    assert claim(store, 0, "w/2/second", ended=ended, loss_of=lambda owner: Loss.CRASH) is None
    assert seen == ["message"]
    assert record(store) == Record(Fence(1, Status.DONE), Snapshot().dumps_done(), "", "", inbox="")
    clock.now += 60
    assert store.read("id") is None

    running(store)
    assert recover(store, Loss.CRASH, ended) is None
    assert record(store).fence == Fence(1, Status.DONE)


def test_rule_6_each_claim_has_a_generation_of_its_own(store: MemoryStore) -> None:
    first = running(store)
    second = claim(store, 0, "w/2/second", ended=never, loss_of=lambda owner: Loss.CRASH)
    assert second.fence == Fence(2, Status.RUNNING, "w/2/second")
    assert second.is_recovered
    with pytest.raises(Superseded):
        first.save("late")
    third = claim(store, 7, "w/3/third", "newer")
    assert third.fence == Fence(8, Status.RUNNING, "w/3/third"), "the store has lost some writes"


def test_rule_7_of_two_snapshots_the_newer_one_counts(store: MemoryStore) -> None:
    owned = running(store)
    owned.save("saved")
    owned.release("released")
    older = claim(store, 0, "w/2/a", "in the message")
    assert (older.fence.generation, older.snapshot) == (2, "released")
    newer = claim(store, 2, "w/3/b", "made after the last save")
    assert (newer.fence.generation, newer.snapshot) == (3, "made after the last save")


def test_rule_8_only_the_owner_writes(store: MemoryStore) -> None:
    fence = running(store).fence
    before = record(store)
    for wrong in (fence._replace(generation=2), fence._replace(owner="w/1/other"), fence._replace(owner="")):
        other = at(store, wrong)
        writes: list[Callable[[], None]] = [
            lambda other=other: other.save("wrong"),  # type: ignore[misc]
            lambda other=other: other.queue("wrong", 0),  # type: ignore[misc]
            lambda other=other: other.finish("wrong", "1"),  # type: ignore[misc]
            lambda other=other: other.remove(),  # type: ignore[misc]
            lambda other=other: other.wait("wrong", None, lambda inbox: False),  # type: ignore[misc]
        ]
        for write in writes:
            with pytest.raises(Superseded):
                write()
        other.end(Status.DONE, "wrong", 60)
        other.release("wrong")
        assert not other.is_found()
        assert other.fence == wrong
    assert record(store) == before


def test_rule_14_a_record_that_its_store_has_lost_is_written_again(clock: Clock) -> None:
    fence = running(MemoryStore()).fence
    store = MemoryStore(clock)
    at(store, fence).save("saved")
    assert record(store) == Record(fence, "saved", "message")
    at(store, fence).save("saved again")

    store = MemoryStore(clock)
    owned = at(store, fence)
    owned.queue("left", 0)
    assert owned.fence == Fence(1, Status.QUEUED)
    owned = at(store, fence)
    owned.finish("last", "1")
    assert owned.fence == fence._replace(status=Status.RETURNED)
    owned.end(Status.DONE, "last", 60)
    assert owned.fence == Fence(1, Status.DONE)
    assert claim(store, 1, snapshot="left", ended=never).snapshot == "left", "the message has it all"


def test_an_id_that_was_freed_is_another_tasks(store: MemoryStore) -> None:
    owned = running(store)
    owned.remove()
    assert store.read("id") is None
    assert seen(claim(store, 0, "w/2/next")) == (Fence(1, Status.RUNNING, "w/2/next"), None)


def test_rule_9_the_value_is_kept_before_celery_passes_it_on(store: MemoryStore) -> None:
    owned = running(store)
    fence = owned.fence
    owned.finish(SAVED, "[1]")
    assert owned.fence == fence._replace(status=Status.RETURNED)
    found = claim(store, 0, "w/2/next", ended=never, loss_of=lambda owner: Loss.STOP)
    assert (found.fence.generation, found.value, found.is_recovered) == (2, "[1]", True)


def test_rule_9_also_by_way_of_the_sweep(store: MemoryStore) -> None:
    running(store).finish(SAVED, "[1]")
    assert recover(store, Loss.CRASH).value == "[1]"
    assert claim(store, 1).value == "[1]"


@pytest.mark.parametrize(("status", "message"), [(Status.DONE, ""), (Status.FAILED, "message")])
def test_rule_10_a_record_that_has_ended_stays_for_a_while(
    store: MemoryStore, clock: Clock, status: Status, message: str
) -> None:
    owned = running(store)
    owned.finish("last", "[1]")
    owned.end(status, None, 60)
    inbox = None if status == Status.FAILED else ""
    assert record(store) == Record(Fence(1, status), "last", message, "", inbox=inbox)
    assert claim(store, 0) is None
    clock.now += 60
    assert store.read("id") is None


def test_rule_11_of_two_sweepers_one_recovers(store: MemoryStore, clock: Clock) -> None:
    running(store)
    found: list[Any] = []

    def meanwhile(message: str | None) -> None:
        found.append(recover(store, Loss.CRASH))

    assert recover(store, Loss.CRASH, meanwhile) is None
    (recovered,) = found
    assert (recovered.fence, recovered.message) == (Fence(1, Status.QUEUED), "message")
    assert (record(store).fence, record(store).due) == (Fence(1, Status.QUEUED), clock.now + OVERDUE_AFTER)
    assert recover(store, Loss.CRASH) is None
    assert claim(store, 1).fence.generation == 2


def test_a_live_owner_keeps_its_record(store: MemoryStore) -> None:
    owned = running(store)
    assert recover(store, None, unasked) is None
    owned.save("it continues")
    owned.release("left")
    assert recover(store, Loss.CRASH, unasked) is None, "it has no owner"
    assert recover_record(store, "unknown", ended=unasked, loss_of=unasked) is None


@pytest.mark.parametrize("loss", [Loss.CRASH, Loss.SUSPECTED_CRASH, Loss.STOP])
def test_losses_are_counted_by_their_kind(store: MemoryStore, loss: Loss) -> None:
    expected = Snapshot.loads(SAVED)
    expected.lose(alone=loss is Loss.CRASH, shared=loss is Loss.SUSPECTED_CRASH)
    running(store)
    assert json.loads(recover(store, loss).snapshot) == json.loads(expected.dumps())
    assert json.loads(record(store).snapshot or "") == json.loads(expected.dumps())

    store = MemoryStore()
    running(store)
    found = claim(store, 0, "w/2/second", ended=never, loss_of=lambda owner: loss)
    assert json.loads(found.snapshot) == json.loads(expected.dumps())
    assert record(store).snapshot == found.snapshot


def test_rule_12_a_released_record_whose_message_does_not_come_back_is_queued(store: MemoryStore, clock: Clock) -> None:
    owned = running(store)
    assert republish_overdue(store, "id", unasked) is None, "it is running"
    owned.release("progress")
    assert (record(store).fence, record(store).due) == (Fence(1, Status.RUNNING), clock.now + OVERDUE_AFTER)
    found = republish_overdue(store, "id", lambda found: True)
    assert found is not None
    assert (found.snapshot, found.message) == ("progress", "message")
    assert record(store).fence == Fence(1, Status.QUEUED)
    assert claim(store, 1).snapshot == "progress"


def test_release_lets_the_same_message_claim_again(store: MemoryStore) -> None:
    running(store).release("progress")
    again = claim(store, 0, "w/2/again", "older")
    assert seen(again) == (Fence(2, Status.RUNNING, "w/2/again"), "progress")
    assert record(store).due is None


def test_rule_13_each_check_doubles_the_time_until_the_next(store: MemoryStore, clock: Clock) -> None:
    running(store).queue("left", 0)
    for checks in range(1, 20):
        found = republish_overdue(store, "id", lambda found: True)
        assert found is not None
        assert record(store).fence == Fence(1, Status.QUEUED, republished=checks)
        assert record(store).due == clock.now + OVERDUE_AFTER * 2 ** min(checks, 14)
    assert seen(claim(store, 1)) == (Fence(2, Status.RUNNING, "w/1/o"), "left")
    assert republish_overdue(store, "id", unasked) is None


def test_rule_13_of_two_sweepers_one_checks(store: MemoryStore) -> None:
    running(store).queue("left", 0)
    one, read = [], store.read

    def read_and_be_overtaken(task_id: str) -> Record | None:
        found = read(task_id)
        store.read = read  # type: ignore[method-assign]
        one.append(republish_overdue(store, task_id, lambda found: True))
        return found

    store.read = read_and_be_overtaken  # type: ignore[method-assign]
    assert republish_overdue(store, "id", lambda found: True) is None
    assert [found is not None for found in one] == [True]


def test_rule_13_a_check_that_finds_the_broker_unavailable_does_not_count(store: MemoryStore) -> None:
    def away(found: Record) -> bool:
        raise OperationalError("away")

    running(store).queue("left", 0)
    before = record(store)
    with pytest.raises(OperationalError):
        republish_overdue(store, "id", away)
    assert record(store) == before


def test_rule_17_what_could_not_be_published_is_published_by_the_next_sweep(store: MemoryStore, clock: Clock) -> None:
    running(store).queue("left", 0)
    for _ in range(3):
        not_published(store, "id", 1)
        assert (record(store).fence, record(store).due) == (Fence(1, Status.WAITING), clock.now)
        assert republish_overdue(store, "id", unasked) is not None
    fence = claim(store, 1).fence
    not_published(store, "id", 1)
    assert record(store).fence == fence


def test_a_message_that_may_still_be_in_its_queue_is_not_published_again(store: MemoryStore, clock: Clock) -> None:
    running(store).queue("left", 0)
    assert republish_overdue(store, "id", lambda found: False) is None
    assert record(store).due == clock.now + 2 * OVERDUE_AFTER
    assert republish_overdue(store, "unknown", unasked) is None


class Deaf(MemoryStore):
    """A write whose answer is lost: the driver repeats it."""

    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        super().compare_and_swap(task_id, expected, update)
        return super().compare_and_swap(task_id, expected, update)

    def take(self, task_id: str, expected: Fence, fence: Fence) -> Record | None:
        super().take(task_id, expected, fence)
        return super().take(task_id, expected, fence)


def test_a_write_whose_answer_was_lost_is_known_again() -> None:
    store = Deaf()
    owned = claim(store, 0)
    assert owned.fence == Fence(1, Status.RUNNING, "w/1/o")
    owned.save("saved")
    owned.queue("left", 0)
    assert owned.fence == Fence(1, Status.QUEUED)
    owned = claim(store, 1, "w/1/second")
    assert owned.fence == Fence(2, Status.RUNNING, "w/1/second")
    owned.finish("last", "[1]")
    owned.end(Status.DONE, None, 60)
    assert record(store).fence == owned.fence == Fence(2, Status.DONE)


def test_a_store_that_keeps_nothing_lets_every_message_run() -> None:
    store = MessageStore()
    assert claim(store, 0).fence.generation == 1
    assert seen(claim(store, 3, snapshot="carried")) == (Fence(4, Status.RUNNING, "w/1/o"), "carried")


# -- deliveries and operators, in between


def after_read(store: MemoryStore, act: Callable[[], Any]) -> None:
    """Run an action between the next read and the write that follows it."""
    read = store.read

    def read_and_act(task_id: str) -> Record | None:
        found = read(task_id)
        store.read = read  # type: ignore[method-assign]
        act()
        return found

    store.read = read_and_act  # type: ignore[method-assign]


def test_a_pause_that_is_taken_back_while_the_owner_saves_does_not_end_it(store: MemoryStore) -> None:
    owned = running(store)
    fence = owned.fence
    commands.pause(store, "id", ended=never, kept_for=1000)
    after_read(store, lambda: commands.resume(store, "id", ended=never, kept_for=1000))
    owned.save(SAVED)
    assert owned.fence == fence


def test_a_pause_that_is_taken_back_while_the_owner_leaves_does_not_end_it(store: MemoryStore) -> None:
    owned = running(store)
    commands.pause(store, "id", ended=never, kept_for=1000)
    after_read(store, lambda: commands.resume(store, "id", ended=never, kept_for=1000))
    owned.queue(SAVED, 0.0)
    assert owned.fence == record(store).fence == Fence(1, Status.QUEUED)


def test_a_task_that_is_resumed_just_when_its_first_message_comes_is_not_lost(store: MemoryStore) -> None:
    commands.pause(store, "id", ended=never, kept_for=1000)
    swap = store.compare_and_swap

    def resume_first(task_id: str, expected: Fence | None, update: Update) -> bool:
        if expected == Fence(0, Status.PAUSED):
            store.compare_and_swap = swap  # type: ignore[method-assign]
            assert commands.resume(store, "id", ended=never, kept_for=1000) is None
        return swap(task_id, expected, update)

    store.compare_and_swap = resume_first  # type: ignore[method-assign]
    assert claim(store, 0).fence == Fence(1, Status.RUNNING, "w/1/o")


def test_a_task_whose_first_message_comes_just_when_it_is_resumed_is_published(store: MemoryStore) -> None:
    commands.pause(store, "id", ended=never, kept_for=1000)
    after_read(store, lambda: claim(store, 0))
    resumed = commands.resume(store, "id", ended=never, kept_for=1000)
    assert resumed is not None and resumed.message == "message"


def test_a_command_that_comes_while_a_loss_is_counted_costs_no_progress(store: MemoryStore) -> None:
    running(store).save(SAVED.replace("{", '{"executions": 7, ', 1))
    swap = store.compare_and_swap

    def swap_and_pause(task_id: str, expected: Fence | None, update: Update) -> bool:
        swapped = swap(task_id, expected, update)
        if swapped and update.fence.owner == "w/2/p":
            store.compare_and_swap = swap  # type: ignore[method-assign]
            commands.pause(store, "id", ended=never, kept_for=1000)
        return swapped

    store.compare_and_swap = swap_and_pause  # type: ignore[method-assign]
    taken = claim(store, 0, "w/2/p", ended=never, loss_of=lambda owner: Loss.CRASH)
    assert Snapshot.loads(taken.snapshot).losses == Snapshot.loads(str(record(store).snapshot)).losses == (1, 0)
    assert Snapshot.loads(taken.snapshot).executions == 7
    assert record(store).fence.command is Command.PAUSE


def test_a_check_for_the_message_while_a_loss_is_counted_costs_no_count(store: MemoryStore) -> None:
    running(store)
    swap = store.compare_and_swap

    def swap_and_look(task_id: str, expected: Fence | None, update: Update) -> bool:
        swapped = swap(task_id, expected, update)
        store.compare_and_swap = swap  # type: ignore[method-assign]
        assert republish_overdue(store, "id", lambda found: False) is None
        return swapped

    store.compare_and_swap = swap_and_look  # type: ignore[method-assign]
    assert recover(store, Loss.CRASH) is not None
    assert Snapshot.loads(str(record(store).snapshot)).losses == (1, 0)


def test_a_superseding_execution_inherits_the_command(store: MemoryStore) -> None:
    running(store)
    assert not commands.cancel(store, "id", ended=never, kept_for=9.0).is_over
    assert claim(store, 1, "w/2/p", SAVED).fence == Fence(2, Status.RUNNING, "w/2/p", Command.CANCEL)


def test_a_finished_execution_that_was_lost_is_not_cancelled(store: MemoryStore) -> None:
    """Its callbacks may have been dispatched."""
    running(store).finish(SAVED, "7")
    assert recover(store, Loss.CRASH) is not None
    with pytest.raises(DeliveryError, match="it has finished"):
        commands.cancel(store, "id", ended=never, kept_for=9.0)


def test_a_claim_that_is_succeeded_before_it_has_counted_a_loss_is_none(store: MemoryStore) -> None:
    """It was frozen in between, past its lease."""
    running(store)
    swap = store.compare_and_swap

    def swap_and_freeze(task_id: str, expected: Fence | None, update: Update) -> bool:
        swapped = swap(task_id, expected, update)
        if swapped:
            store.compare_and_swap = swap  # type: ignore[method-assign]
            assert recover(store, Loss.CRASH) is not None
            assert claim(store, 2, "w/3/q") is not None
        return swapped

    store.compare_and_swap = swap_and_freeze  # type: ignore[method-assign]
    assert claim(store, 0, "w/2/p", ended=never, loss_of=lambda owner: Loss.CRASH) is None


# -- the fencing token


@pytest.mark.parametrize(
    ("text", "fence"),
    [
        ("1 running w/7/a", Fence(1, Status.RUNNING, "w/7/a")),
        ("2 running w/7/a/pause", Fence(2, Status.RUNNING, "w/7/a", Command.PAUSE)),
        ("2 finishing w/7/a/cancel", Fence(2, Status.RETURNED, "w/7/a", Command.CANCEL)),
        ("3 running ", Fence(3, Status.RUNNING)),
        ("3 queued ", Fence(3, Status.QUEUED)),
        ("3 queued 12", Fence(3, Status.QUEUED, republished=12)),
        ("0 paused kept", Fence(0, Status.PAUSED, message_saved=True)),
        ("2 cancelled awaited", Fence(2, Status.CANCELLED, tombstone=Tombstone.AWAITED)),
        ("0 cancelled unreported", Fence(0, Status.CANCELLED, tombstone=Tombstone.UNREPORTED)),
        ("4 done ", Fence(4, Status.DONE)),
    ],
)
def test_a_fencing_token_has_the_text_that_release_0_1_wrote(text: str, fence: Fence) -> None:
    assert Fence.loads(text) == fence
    assert fence.dumps() == text


@pytest.mark.parametrize("text", ["", "1", "1 running", "x running w/7/a", "1 strolling w/7/a", "1 running w/7/a/stop"])
def test_what_is_not_a_fencing_token_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unknown (status|command)|unpack|invalid literal"):
        Fence.loads(text)


def test_what_is_stored_before_its_task_expires_until_the_task_starts(monkeypatch: Any) -> None:
    """A mistyped id leaves nothing that never expires, whatever callers do to it."""
    now = 1000.0
    acts: list[Any] = [
        lambda store: commands.pause(store, "id", ended=never, kept_for=50),
        lambda store: commands.resume(store, "id", ended=never, kept_for=50),
        lambda store: commands.deliver(store, "id", "a", Outcome("done", 1), ended=never, largest=1000, kept_for=50),
        lambda store: commands.cancel(store, "id", ended=never, kept_for=50),
    ]

    def clock() -> float:
        return now

    for length in (1, 2, 3):
        for chosen in itertools.product(acts, repeat=length):
            store = MemoryStore(clock)
            for act in chosen:
                with suppress(DeliveryError):
                    act(store)
            now += 51
            assert store.read("id") is None
    paused = MemoryStore(clock)
    commands.pause(paused, "id", ended=never, kept_for=50)
    with suppress(Exception):
        claim(paused, 0)  # its message comes: it is saved
    now += 51
    assert paused.read("id").message == "message"  # type: ignore[union-attr]


@pytest.mark.parametrize("status", [Status.DONE, Status.FAILED, Status.CANCELLED])
@pytest.mark.parametrize("left", ["queued", "released", "running"])
def test_rule_25_a_continuation_of_a_task_that_has_ended_runs_nothing(
    store: MemoryStore, left: str, status: Status
) -> None:
    running(store).queue("left", 0)
    if left != "queued":
        second = claim(store, 1)
        second.release("released") if left == "released" else None
    asked: list[Any] = []

    def ended(found: Record | None) -> Any:
        asked.append(found)
        return status, 60.0

    assert claim(store, 1 if left != "running" else 2, "w/1/new", ended=ended) is None
    assert record(store).fence == Fence(1 if left == "queued" else 2, status)
    assert asked


def test_rule_25_asks_once_and_only_for_continuations_whose_results_are_stored(store: MemoryStore) -> None:
    asked: list[Any] = []
    assert claim(store, 0, ended=unasked)
    store = MemoryStore()
    running(store).queue("left", 0)
    claim(store, 1, ended=asked.append).queue("left", 0)
    assert asked == [None]
    assert claim(store, 2, ended=unasked, stores_results=False)


def test_rule_25_a_chord_member_that_is_not_counted_is_claimed(store: MemoryStore) -> None:
    owned = running(store)
    owned.finish(SAVED, "7")
    assert recover(store, Loss.CRASH).fence.status == Status.QUEUED

    def ended(found: Record | None) -> Any:
        return None if found and found.value else (Status.DONE, 60.0)

    assert claim(store, 1, ended=ended).value == "7"
