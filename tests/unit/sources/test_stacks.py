"""Sources made of sources, in any combination: interrupted at each checkpoint, they end, and nothing is done twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NoReturn

import pytest
from celery import states

from celery_continuations.core import codec
from celery_continuations.core.iteration import Iteration
from celery_continuations.core.reader import Throttled
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import ACCEPTED, Snapshot
from celery_continuations.core.step import Step
from celery_continuations.exceptions import Interrupt, InvalidStepError
from celery_continuations.sources import NoItem, batched, keyed, nested, opener, pages, throttled
from tests.support.worker import Killed

pytestmark = pytest.mark.exhaustive


class Bucket:
    """A condition that consumes a token, of which there is one in each execution."""

    def __init__(self) -> None:
        self.tokens = 1

    def __call__(self) -> bool:
        if self.tokens:
            self.tokens -= 1
            return False
        return True


class Gaps:
    """A source of one's own, which yields nothing for some of its numbers."""

    def __init__(self, numbers: list[int | None]) -> None:
        self.numbers = numbers

    def read(self, cursor: Any) -> Iterator[Any]:
        for place in range(cursor or 0, len(self.numbers)):
            number = self.numbers[place]
            yield NoItem(place + 1) if number is None else (number, place + 1)


@dataclass
class Stack:
    """A source, and the buckets of all its levels."""

    make: Callable[[], Any]
    text: str
    buckets: list[Bucket] = field(default_factory=list)

    def __repr__(self) -> str:
        return self.text


def leaf(rng: random.Random) -> Stack:
    """Return a source that reads no other one."""
    kind, numbers = rng.choice(["list", "keyed", "pages", "gaps"]), [rng.randrange(10) for _ in range(rng.randrange(4))]
    if kind == "list":
        return Stack(lambda: numbers, repr(numbers))
    if kind == "keyed":
        rows = sorted(set(numbers))
        return Stack(lambda: keyed(rows, key=lambda row: row), f"keyed({rows})")
    if kind == "pages":
        contents = [[rng.randrange(10) for _ in range(rng.randrange(3))] for _ in range(rng.randrange(1, 4))]
        tokens = [None, *(f"t{number}" for number in range(1, len(contents))), None]

        def page(token: Any) -> Any:
            place = tokens.index(token)
            return contents[place], tokens[place + 1]

        return Stack(lambda: pages(page), f"pages({contents})")
    found = [rng.choice([None, number]) for number in numbers]
    return Stack(lambda: Gaps(found), f"Gaps({found})")


def stack(rng: random.Random, depth: int = 3) -> Stack:
    """Return sources within others, to a depth."""
    kind = rng.choice(["leaf", "batched", "nested", "nested", "limited", "throttled"]) if depth else "leaf"
    if kind == "leaf":
        return leaf(rng)
    one = stack(rng, depth - 1)
    if kind == "batched":
        size = rng.randrange(1, 4)
        return Stack(lambda: batched(one.make(), size), f"batched({one}, {size})", one.buckets)
    if kind == "throttled":
        bucket = Bucket()
        return Stack(lambda: throttled(one.make(), bucket, 1), f"throttled({one})", [*one.buckets, bucket])
    two = stack(rng, depth - 1)
    if kind == "limited" and not one.buckets and not two.buckets:
        shared = Bucket()
        return Stack(
            lambda: nested(throttled(one.make(), shared, 1), lambda item: throttled(two.make(), shared, 1)),
            f"limited({one}, {two})",
            [shared],
        )
    buckets = one.buckets + two.buckets
    return Stack(lambda: nested(one.make(), lambda item: two.make()), f"nested({one}, {two})", buckets)


class Host:
    """A host that interrupts at each checkpoint."""

    def __init__(self, cuts: bool) -> None:
        self.cuts = cuts

    def guard(self, step: str | None, own: Any) -> None:
        pass

    def attend(self, run: Run) -> str | None:
        run.attention = True
        return "stop"

    def is_due(self, run: Run) -> bool:
        return self.cuts

    def save(self, run: Run) -> None:
        pass

    def join(self, run: Run) -> None:
        pass

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        pass

    def back_off(self, run: Run, seconds: float) -> NoReturn:
        run.interrupt("throttled")

    def is_of_item(self, run: Run, step: Step, error: Exception) -> bool:
        return False

    def unchecked(self, run: Run, step: Step) -> None:
        pass


def done_by(stack: Stack, batch: int | None, cuts: bool, limit: int) -> tuple[list[Any], int]:
    """Return the items that a task does which is interrupted at each checkpoint, and how often it was executed."""
    text, done = Snapshot().dumps(), []
    for execution in range(1, limit):
        for bucket in stack.buckets:
            bucket.tokens = min(bucket.tokens + 1, 1)
        run = Run("some-id", Snapshot.loads(text), Host(cuts))
        try:
            for item in run.declare(Iteration(run, "loop", opener("loop", stack.make(), batch))):
                done.append(item)
            run.finish()
            return done, execution
        except Interrupt:
            run.snapshot.resumptions += 1
        text = run.take_snapshot().dumps()
    raise AssertionError(f"{stack} has not ended after {limit} executions; at {text}")


def undisturbed(stack: Stack) -> list[Any]:
    """Return what a loop reads that is never interrupted nor throttled."""
    for bucket in stack.buckets:
        bucket.tokens = 10**6
    found = list(opener("loop", stack.make())().reader.resume(None, None, ACCEPTED))
    for bucket in stack.buckets:
        bucket.tokens = 0
    return found


def parts(item: Any) -> list[Any]:
    """Return the combinations of numbers that an item has: a list may be cut in another place."""
    if isinstance(item, list):
        return [one for part in item for one in parts(part)]
    if isinstance(item, tuple):
        return list(product(*map(parts, item)))
    return [item]


def check(stack: Stack, batch: int | None, cuts: bool) -> None:
    read = undisturbed(stack)
    expected = Counter(one for pair in read if not isinstance(pair, NoItem) for one in parts(pair[0]))
    done, _ = done_by(stack, batch, cuts, 20 + 4 * (len(read) + 1) * (len(stack.buckets) + 2))
    assert Counter(one for item in done for one in parts(item)) == expected


@pytest.mark.parametrize("seeds", [range(first, first + 100) for first in range(0, 600, 100)], ids=str)
def test_every_stack_ends_and_does_each_item_once(seeds: range) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        check(stack(rng), rng.choice([None, 1, 2, 3]), rng.random() < 0.5)


# -- stops and saves where a source yields nothing


def empty_pages(count: int) -> Any:
    return lambda: pages(lambda token: ([], None if token == count else (token or 0) + 1))


NOTHING_FOR_LONG = {
    "pages": empty_pages(3000),
    "outer items": lambda: nested(range(3000), lambda number: []),
    "outer items of two levels": lambda: nested(range(60), lambda number: range(50), lambda one, two: []),
    "a source of one's own": lambda: Gaps([None] * 3000),
    "within others": lambda: nested([1], lambda number: Gaps([None] * 3000)),
    "in pages of others": lambda: nested(empty_pages(3000)(), lambda number: [1]),
    "throttled": lambda: throttled(empty_pages(3000)(), lambda: False, 1),
    "batched": lambda: batched(Gaps([7, *[None] * 3000]), 5),
}


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("name", NOTHING_FOR_LONG)
def test_a_stop_is_noticed_where_a_source_yields_nothing(
    worker: Any, task: Any, name: str, batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = passed_places(monkeypatch, {100: worker.stop})
    result = task(reading(name, batch)).apply_async()
    worker.deliver()
    assert (result.state, len(passed)) == (states.RETRY, 100)
    worker.drain()
    assert result.state == states.SUCCESS
    # A batch that was not complete is read again, once.
    assert len(passed) <= places(name, batch) + (100 if name == "batched" else 2), "it has not begun again"


def reading(name: str, batch: int | None) -> Any:
    def body(self: Any) -> None:
        for _ in self.iterate("loop", NOTHING_FOR_LONG[name](), batch=batch):
            pass

    return body


def places(name: str, batch: int | None, cursor: Any = None) -> int:
    """Return how many places without an item a source has after a cursor."""
    pairs = opener("loop", NOTHING_FOR_LONG[name](), batch)().reader.resume(cursor, None, ACCEPTED)
    return sum(isinstance(pair, NoItem) for pair in pairs)


def killed() -> NoReturn:
    raise Killed


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("name", NOTHING_FOR_LONG)
def test_a_place_is_saved_where_a_source_yields_nothing(
    worker: Any, task: Any, record: Any, later: Any, name: str, batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = passed_places(monkeypatch, {2500: killed})
    made = task(reading(name, batch), continuation_checkpoint_interval=0)
    result = made.apply_async()
    worker.deliver_killed()
    saved = Snapshot.loads(record(result.id).snapshot).current
    assert saved is not None
    assert saved[1] is not None
    assert places(name, batch, codec.decode(saved[1])) <= places(name, batch) - 2490
    assert len(passed) == 2500


def passed_places(monkeypatch: pytest.MonkeyPatch, then: dict[int, Any]) -> list[NoItem]:
    """Return the places that loops pass without an item, and call what is due at the nth of them."""
    real, passed = Iteration._passed, []

    def pass_place(loop: Any, place: NoItem) -> None:
        passed.append(place)
        then.get(len(passed), lambda: None)()
        real(loop, place)

    monkeypatch.setattr(Iteration, "_passed", pass_place)
    return passed


@pytest.mark.parametrize("stops", [False, True])
def test_within_a_transaction_a_place_is_committed_when_something_is_due(stops: bool) -> None:
    class Unit:
        name, commits, begins = "unit", 0, 0

        def begin(self) -> None:
            Unit.begins += 1

        def rollback(self) -> None:
            pass

    class Saving(Host):
        saves: list[Any] = []

        def attend(self, run: Run) -> str | None:
            return "stop" if stops else None

        def save(self, run: Run) -> None:
            self.saves.append(run.current and run.current.cursor)
            run.committed()

    Saving.saves = []
    run = Run("some-id", Snapshot(), Saving(cuts=stops))
    loop = run.declare(Iteration(run, "loop", opener("loop", Gaps([1, None, None])), unit=Unit()))
    if stops:
        items = iter(loop)
        assert next(items) == 1
        with pytest.raises(Interrupt):
            next(items)
        return
    list(loop)
    assert Saving.saves == [1, None], "after the item, and at the end"


# -- what a source must not do with it


class Wrapping:
    """A source of one's own, which reads another one and takes all that it yields for pairs."""

    def read(self, cursor: Any) -> Iterator[Any]:
        for item, after in Gaps([1, None, 2]).read(cursor):
            yield item * 10, after


def test_a_source_that_unpacks_it_is_an_error_and_not_the_end(task: Any) -> None:
    seen: list[int] = []

    def body(self: Any) -> None:
        for item in self.iterate("loop", Wrapping()):
            seen.append(item)

    with pytest.raises(InvalidStepError, match=r"NoItem\(2\) of a source was unpacked like a pair"):
        task(body)()
    assert seen == [10]


# -- throttles within others


def test_an_outer_item_is_not_asked_for_again(worker: Any, task: Any, later: Any) -> None:
    """Not if it is done, nor if the loop resumes within it."""
    asked, bucket = [], Bucket()

    def condition() -> bool:
        asked.append(bucket.tokens)
        return bucket()

    def body(self: Any) -> None:
        for pair in self.iterate("loop", nested(throttled(["a", "b", "c"], condition, 30), lambda letter: [1, 2])):
            done.append(pair)
            if len(done) in (1, 4):
                worker.stop()

    done: list[Any] = []
    result = task(body).apply_async()
    for _ in range(20):
        worker.drain()
        if result.ready():
            break
        bucket.tokens += 1
        later(31)
    assert done == [(letter, number) for letter in "abc" for number in (1, 2)]
    assert asked == [1, 0, 1, 0, 1, 0, 1], "once for each, again after each wait, and for the end"


def test_rows_by_key_that_are_skipped_have_checkpoints_and_are_not_asked_for() -> None:
    bucket = Bucket()
    reader = opener("loop", throttled(keyed(range(5000), key=lambda row: row), bucket, 1))().reader
    found = []
    with pytest.raises(Throttled):
        for pair in reader.resume(4500, None, None):
            found.append(pair)
    assert [repr(pair) for pair in found] == [*["NoItem()"] * 4, "(4501, 4501)"]
