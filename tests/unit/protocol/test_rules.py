"""Each numbered rule of the protocol, on records in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from celery_continuations.core.snapshot import Snapshot
from celery_continuations.exceptions import DeliveryError
from celery_continuations.protocol import commands, rules
from celery_continuations.protocol.rules import PATIENCE, Claim, Death
from celery_continuations.stores.base import ENDED, PAUSE, Fence, Record, Status
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
    ended: Callable[[str | None], Any] = unasked,
    death: Callable[[str], Any] = unasked,
) -> Any:
    return rules.claim(
        store, "id", generation, owner, snapshot=snapshot, message=lambda: "message", ended=ended, death=death
    )


def recover(store: Any, death: str | None, ended: Callable[[str | None], Any] = never) -> Any:
    return rules.recover(store, "id", ended=ended, death=lambda owner: death)


def record(store: MemoryStore) -> Record:
    found = store.read("id")
    assert found is not None
    return found


def save(store: Any, task_id: str, fence: Fence, snapshot: str) -> Fence | None:
    return rules.save(store, task_id, fence, snapshot, lambda: "message")


def running(store: MemoryStore, owner: str = "w/1/o") -> Fence:
    fence = claim(store, 0, owner).fence
    assert save(store, "id", fence, SAVED)
    assert isinstance(fence, Fence)
    return fence


def test_one_message_after_the_other_is_claimed_in_one_round_trip(store: MemoryStore, clock: Clock) -> None:
    first = claim(store, 0, "w/1/first")
    assert first == Claim(Fence(1, Status.RUNNING, "w/1/first"), None)
    assert record(store).message == "message"
    queued = rules.interrupt(store, "id", first.fence, "left", due_in=60)
    assert queued == Fence(1, Status.QUEUED)
    assert record(store).due == clock.now + 60 + PATIENCE
    second = claim(store, 1, "w/1/second", "carried")
    assert second == Claim(Fence(2, Status.RUNNING, "w/1/second"), "carried")
    rules.interrupt(store, "id", second.fence, "left again", due_in=0, message="another")
    assert record(store).message == "another"
    assert claim(store, 2) == Claim(Fence(3, Status.RUNNING, "w/1/o"), "left again"), "the message carries none"


def test_rule_1_a_message_whose_record_is_gone_is_trusted_unless_the_task_has_ended(store: MemoryStore) -> None:
    assert claim(store, 3, ended=lambda message: (Status.DONE, 60.0)) is None
    assert store.read("id") is None
    assert claim(store, 3, snapshot="carried", ended=never) == Claim(Fence(4, Status.RUNNING, "w/1/o"), "carried")
    assert record(store).message == "message"


@pytest.mark.parametrize("status", sorted(ENDED))
def test_rule_2_what_has_ended_is_not_touched(store: MemoryStore, status: str) -> None:
    store.swap("id", None, Record(Fence(2, status), "snapshot", "message"))
    for generation in (0, 1, 2, 3):
        assert claim(store, generation) is None
    assert store.read("id") == Record(Fence(2, status), "snapshot", "message")


def test_rule_3_a_message_older_than_the_last_claims_is_stale(store: MemoryStore) -> None:
    fence = running(store)
    queued = rules.interrupt(store, "id", fence, "left", due_in=0)
    assert queued is not None
    assert claim(store, 0) is None, "the first message again, while the second waits"
    second = claim(store, 1, "w/1/second").fence
    assert claim(store, 0) is None, "the first message again, while the second runs"
    assert record(store).fence == second


def test_rule_4_a_second_delivery_of_what_a_live_owner_works_on_ends(store: MemoryStore) -> None:
    fence = running(store)
    asked: list[str] = []
    assert claim(store, 0, "w/2/second", death=asked.append) is None
    assert asked == ["w/1/o"]
    assert save(store, "id", fence, "it goes on")


def test_rule_23_what_an_owner_saves_until_its_record_is_taken_is_not_lost(store: MemoryStore) -> None:
    """It was frozen past its lease, and wakes while a sweep has read its record."""
    fence = running(store)
    read = store.read

    def read_and_save(task_id: str) -> Record | None:
        found = read(task_id)
        store.read = read  # type: ignore[method-assign]
        assert save(store, "id", fence, SAVED.replace("{", '{"executions": 7, ', 1))
        return found

    store.read = read_and_save  # type: ignore[method-assign]
    recovered = rules.recover(store, "id", ended=never, death=lambda owner: Death.CRASHED)
    assert recovered is not None
    assert Snapshot.loads(str(recovered.snapshot)).executions == 7
    assert Snapshot.loads(str(record(store).snapshot)).losses == (1, 0)


def test_rule_8_who_was_taken_for_dead_leaves_nothing(store: MemoryStore) -> None:
    """It was frozen past its lease, and is told to stop when it wakes: the record is queued, but not by itself."""
    fence = running(store)
    assert recover(store, Death.CRASHED)
    recovered = record(store)
    assert rules.interrupt(store, "id", fence, "newer", due_in=0) is None
    assert save(store, "id", fence, "newer") is None
    assert record(store) == recovered


def test_rule_5_a_dead_owner_may_have_stored_its_result(store: MemoryStore, clock: Clock) -> None:
    running(store)
    seen: list[str | None] = []

    def ended(found: Record | None) -> tuple[str, float]:
        seen.append(found and found.message)
        return Status.DONE, 60.0

    assert claim(store, 0, "w/2/second", ended=ended, death=lambda owner: Death.CRASHED) is None
    assert seen == ["message"]
    assert record(store) == Record(Fence(1, Status.DONE), SAVED, "", "", inbox="")
    clock.now += 60
    assert store.read("id") is None

    running(store)
    assert recover(store, Death.CRASHED, ended) is None
    assert record(store).fence == Fence(1, Status.DONE)


def test_rule_6_each_claim_has_a_generation_of_its_own(store: MemoryStore) -> None:
    first = running(store)
    second = claim(store, 0, "w/2/second", ended=never, death=lambda owner: Death.CRASHED)
    assert second.fence == Fence(2, Status.RUNNING, "w/2/second")
    assert second.lost
    assert not save(store, "id", first, "late")
    third = claim(store, 7, "w/3/third", "newer")
    assert third.fence == Fence(8, Status.RUNNING, "w/3/third"), "the store has lost some writes"


def test_rule_7_of_two_snapshots_the_newer_one_counts(store: MemoryStore) -> None:
    fence = running(store)
    save(store, "id", fence, "saved")
    rules.release(store, "id", fence, "released")
    older = claim(store, 0, "w/2/a", "in the message")
    assert (older.fence.generation, older.snapshot) == (2, "released")
    newer = claim(store, 2, "w/3/b", "made after the last save")
    assert (newer.fence.generation, newer.snapshot) == (3, "made after the last save")


def test_rule_8_nobody_writes_but_the_owner(store: MemoryStore) -> None:
    fence = running(store)
    before = record(store)
    for wrong in (fence._replace(generation=2), fence._replace(owner="w/1/other"), fence._replace(owner="")):
        assert not save(store, "id", wrong, "wrong")
        assert rules.interrupt(store, "id", wrong, "wrong", due_in=0) is None
        assert rules.finish(store, "id", wrong, "wrong", "1") is None
        assert not rules.end(store, "id", wrong, Status.DONE, "wrong", 60)
        rules.release(store, "id", wrong, "wrong")
    assert record(store) == before


def test_rule_9_a_record_that_its_store_has_lost_is_written_anew(clock: Clock) -> None:
    fence = running(MemoryStore())
    store = MemoryStore(clock)
    assert save(store, "id", fence, "saved")
    assert record(store) == Record(fence, "saved", "message")
    assert save(store, "id", fence, "saved again")

    store = MemoryStore(clock)
    assert rules.interrupt(store, "id", fence, "left", due_in=0) == Fence(1, Status.QUEUED)
    assert rules.finish(store, "id", fence, "last", "1") == fence._replace(status=Status.FINISHING)
    assert rules.end(store, "id", fence, Status.DONE, "last", 60)
    assert claim(store, 1, snapshot="left", ended=never).snapshot == "left", "the message has it all"


def test_rule_10_the_value_is_kept_before_celery_passes_it_on(store: MemoryStore) -> None:
    fence = running(store)
    assert rules.finish(store, "id", fence, SAVED, "[1]") == fence._replace(status=Status.FINISHING)
    found = claim(store, 0, "w/2/next", ended=never, death=lambda owner: Death.STOPPED)
    assert (found.fence.generation, found.value, found.lost) == (2, "[1]", True)


def test_rule_10_also_by_way_of_the_sweep(store: MemoryStore) -> None:
    rules.finish(store, "id", running(store), SAVED, "[1]")
    assert recover(store, Death.CRASHED).value == "[1]"
    assert claim(store, 1).value == "[1]"


@pytest.mark.parametrize(("status", "message"), [(Status.DONE, ""), (Status.FAILED, "message")])
def test_rule_11_a_record_that_has_ended_stays_for_a_while(
    store: MemoryStore, clock: Clock, status: str, message: str
) -> None:
    fence = running(store)
    finishing = rules.finish(store, "id", fence, "last", "[1]")
    assert finishing is not None
    assert rules.end(store, "id", finishing, status, None, 60)
    inbox = None if status == Status.FAILED else ""
    assert record(store) == Record(Fence(1, status), "last", message, "", inbox=inbox)
    assert claim(store, 0) is None
    clock.now += 60
    assert store.read("id") is None


def test_rule_12_of_two_sweepers_one_recovers(store: MemoryStore, clock: Clock) -> None:
    running(store)
    found: list[Any] = []

    def meanwhile(message: str | None) -> None:
        found.append(recover(store, Death.CRASHED))

    assert recover(store, Death.CRASHED, meanwhile) is None
    (recovered,) = found
    assert (recovered.fence, recovered.message) == (Fence(1, Status.QUEUED), "message")
    assert (record(store).fence, record(store).due) == (Fence(1, Status.QUEUED), clock.now + PATIENCE)
    assert recover(store, Death.CRASHED) is None
    assert claim(store, 1).fence.generation == 2


def test_a_live_owner_keeps_its_record(store: MemoryStore) -> None:
    fence = running(store)
    assert recover(store, None, unasked) is None
    assert save(store, "id", fence, "it goes on")
    rules.release(store, "id", fence, "left")
    assert recover(store, Death.CRASHED, unasked) is None, "nobody owns it"
    assert rules.recover(store, "unknown", ended=unasked, death=unasked) is None


@pytest.mark.parametrize("death", [Death.CRASHED, Death.SHARED, Death.STOPPED])
def test_how_an_owner_died_is_counted(store: MemoryStore, death: str) -> None:
    expected = Snapshot.loads(SAVED)
    expected.lose(alone=death == Death.CRASHED, shared=death == Death.SHARED)
    running(store)
    assert json.loads(recover(store, death).snapshot) == json.loads(expected.dumps())
    assert json.loads(record(store).snapshot or "") == json.loads(expected.dumps())

    store = MemoryStore()
    running(store)
    found = claim(store, 0, "w/2/second", ended=never, death=lambda owner: death)
    assert json.loads(found.snapshot) == json.loads(expected.dumps())
    assert record(store).snapshot == found.snapshot


def test_rule_13_a_released_record_whose_message_does_not_come_back_is_queued(store: MemoryStore, clock: Clock) -> None:
    fence = running(store)
    assert rules.remind(store, "id", unasked) is None, "it is being worked on"
    rules.release(store, "id", fence, "progress")
    assert (record(store).fence, record(store).due) == (Fence(1, Status.RUNNING), clock.now + PATIENCE)
    found = rules.remind(store, "id", lambda found: True)
    assert found is not None
    assert (found.snapshot, found.message) == ("progress", "message")
    assert record(store).fence == Fence(1, Status.QUEUED)
    assert claim(store, 1).snapshot == "progress"


def test_release_lets_the_same_message_claim_again(store: MemoryStore) -> None:
    rules.release(store, "id", running(store), "progress")
    again = claim(store, 0, "w/2/again", "older")
    assert again == Claim(Fence(2, Status.RUNNING, "w/2/again"), "progress")
    assert record(store).due is None


def test_rule_14_each_look_doubles_the_patience(store: MemoryStore, clock: Clock) -> None:
    rules.interrupt(store, "id", running(store), "left", due_in=0)
    for looks in range(1, 20):
        found = rules.remind(store, "id", lambda found: True)
        assert found is not None
        assert record(store).fence == Fence(1, Status.QUEUED, str(looks))
        assert record(store).due == clock.now + PATIENCE * 2 ** min(looks, 14)
    assert claim(store, 1) == Claim(Fence(2, Status.RUNNING, "w/1/o"), "left")
    assert rules.remind(store, "id", unasked) is None


def test_rule_14_of_two_sweepers_one_reminds(store: MemoryStore) -> None:
    rules.interrupt(store, "id", running(store), "left", due_in=0)
    one, read = [], store.read

    def read_and_be_overtaken(task_id: str) -> Record | None:
        found = read(task_id)
        store.read = read  # type: ignore[method-assign]
        one.append(rules.remind(store, task_id, lambda found: True))
        return found

    store.read = read_and_be_overtaken  # type: ignore[method-assign]
    assert rules.remind(store, "id", unasked) is None
    assert [found is not None for found in one] == [True]


def test_a_message_that_may_still_be_in_its_queue_is_not_published_again(store: MemoryStore, clock: Clock) -> None:
    rules.interrupt(store, "id", running(store), "left", due_in=0)
    assert rules.remind(store, "id", lambda found: False) is None
    assert record(store).due == clock.now + 2 * PATIENCE
    assert rules.remind(store, "unknown", unasked) is None


class Deaf(MemoryStore):
    """Writes, and its answer is lost: the driver asks again."""

    def swap(self, task_id: str, expected: Fence | None, record: Record, **times: Any) -> bool:
        super().swap(task_id, expected, record, **times)
        return super().swap(task_id, expected, record, **times)

    def take(self, task_id: str, expected: Fence, fence: Fence) -> Record | None:
        super().take(task_id, expected, fence)
        return super().take(task_id, expected, fence)


def test_a_write_whose_answer_was_lost_is_known_again() -> None:
    store = Deaf()
    fence = claim(store, 0).fence
    assert fence == Fence(1, Status.RUNNING, "w/1/o")
    assert save(store, "id", fence, "saved")
    assert rules.interrupt(store, "id", fence, "left", due_in=0) == Fence(1, Status.QUEUED)
    fence = claim(store, 1, "w/1/second").fence
    assert fence == Fence(2, Status.RUNNING, "w/1/second")
    finishing = rules.finish(store, "id", fence, "last", "[1]")
    assert finishing is not None
    assert rules.end(store, "id", finishing, Status.DONE, None, 60)
    assert record(store).fence == Fence(2, Status.DONE)


def test_a_store_that_keeps_nothing_lets_every_message_run() -> None:
    store = MessageStore()
    assert claim(store, 0).fence.generation == 1
    assert claim(store, 3, snapshot="carried") == Claim(Fence(4, Status.RUNNING, "w/1/o"), "carried")


# -- somebody outside, in between


def after_read(store: MemoryStore, act: Callable[[], Any]) -> None:
    """Have something happen between the next read and what is done with it."""
    read = store.read

    def read_and_act(task_id: str) -> Record | None:
        found = read(task_id)
        store.read = read  # type: ignore[method-assign]
        act()
        return found

    store.read = read_and_act  # type: ignore[method-assign]


def test_a_pause_that_is_taken_back_while_the_owner_saves_does_not_end_it(store: MemoryStore) -> None:
    fence = running(store)
    commands.pause(store, "id", ended=never)
    after_read(store, lambda: commands.resume(store, "id", ended=never))
    assert save(store, "id", fence, SAVED) == fence


def test_a_pause_that_is_taken_back_while_the_owner_leaves_does_not_end_it(store: MemoryStore) -> None:
    fence = running(store)
    commands.pause(store, "id", ended=never)
    after_read(store, lambda: commands.resume(store, "id", ended=never))
    left = rules.interrupt(store, "id", fence, SAVED, 0.0)
    assert left == record(store).fence == Fence(1, Status.QUEUED)


def test_a_task_that_is_resumed_just_when_its_first_message_comes_is_not_lost(store: MemoryStore) -> None:
    commands.pause(store, "id", ended=never)
    swap = store.swap

    def resume_first(task_id: str, expected: Fence | None, *args: Any, **kwargs: Any) -> bool:
        if expected == Fence(0, Status.PAUSED):
            store.swap = swap  # type: ignore[method-assign]
            assert commands.resume(store, "id", ended=never) is None
        return swap(task_id, expected, *args, **kwargs)

    store.swap = resume_first  # type: ignore[method-assign]
    assert claim(store, 0).fence == Fence(1, Status.RUNNING, "w/1/o")


def test_a_task_whose_first_message_comes_just_when_it_is_resumed_is_published(store: MemoryStore) -> None:
    commands.pause(store, "id", ended=never)
    after_read(store, lambda: claim(store, 0))
    resumed = commands.resume(store, "id", ended=never)
    assert resumed is not None and resumed.message == "message"


def test_a_wish_that_comes_while_a_loss_is_counted_costs_no_progress(store: MemoryStore) -> None:
    assert save(store, "id", running(store), SAVED.replace("{", '{"executions": 7, ', 1))
    swap = store.swap

    def swap_and_pause(task_id: str, expected: Fence | None, new: Record, **kwargs: Any) -> bool:
        swapped = swap(task_id, expected, new, **kwargs)
        if swapped and new.fence.owner == "w/2/p":
            store.swap = swap  # type: ignore[method-assign]
            commands.pause(store, "id", ended=never)
        return swapped

    store.swap = swap_and_pause  # type: ignore[method-assign]
    taken = claim(store, 0, "w/2/p", ended=never, death=lambda owner: Death.CRASHED)
    assert Snapshot.loads(taken.snapshot).losses == Snapshot.loads(str(record(store).snapshot)).losses == (1, 0)
    assert Snapshot.loads(taken.snapshot).executions == 7
    assert record(store).fence.wish == PAUSE


def test_a_look_for_the_message_while_a_loss_is_counted_costs_no_count(store: MemoryStore) -> None:
    running(store)
    swap = store.swap

    def swap_and_look(task_id: str, expected: Fence | None, new: Record, **kwargs: Any) -> bool:
        swapped = swap(task_id, expected, new, **kwargs)
        store.swap = swap  # type: ignore[method-assign]
        assert rules.remind(store, "id", lambda found: False) is None
        return swapped

    store.swap = swap_and_look  # type: ignore[method-assign]
    assert recover(store, Death.CRASHED) is not None
    assert Snapshot.loads(str(record(store).snapshot)).losses == (1, 0)


def test_a_wish_is_passed_on_to_whoever_succeeds_the_execution(store: MemoryStore) -> None:
    running(store)
    assert not commands.cancel(store, "id", ended=never, kept_for=9.0)
    assert claim(store, 1, "w/2/p", SAVED).fence == Fence(2, Status.RUNNING, "w/2/p/cancel")


def test_a_finished_execution_that_was_lost_is_not_cancelled(store: MemoryStore) -> None:
    """Its callbacks may have been dispatched."""
    assert rules.finish(store, "id", running(store), SAVED, "7")
    assert recover(store, Death.CRASHED) is not None
    with pytest.raises(DeliveryError, match="it has finished"):
        commands.cancel(store, "id", ended=never, kept_for=9.0)


def test_a_claim_that_is_succeeded_before_it_has_counted_a_loss_is_none(store: MemoryStore) -> None:
    """It was frozen in between, past its lease."""
    running(store)
    swap = store.swap

    def swap_and_freeze(task_id: str, expected: Fence | None, new: Record, **kwargs: Any) -> bool:
        swapped = swap(task_id, expected, new, **kwargs)
        if swapped:
            store.swap = swap  # type: ignore[method-assign]
            assert recover(store, Death.CRASHED) is not None
            assert claim(store, 2, "w/3/q") is not None
        return swapped

    store.swap = swap_and_freeze  # type: ignore[method-assign]
    assert claim(store, 0, "w/2/p", ended=never, death=lambda owner: Death.CRASHED) is None
