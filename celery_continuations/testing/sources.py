"""What every source has to do, as tests: run them on a source of your own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NoReturn

from celery_continuations.core import codec
from celery_continuations.core.iteration import Iteration
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.core.step import Step
from celery_continuations.exceptions import Interrupt, InvalidStepError
from celery_continuations.sources import Source, opener

__all__ = ["SourceConformance"]


class SourceConformance:
    """The tests of a source; pytest runs them in a subclass that says how to make one.

    Some dozens of items are enough: each test goes on from every one of them.

    >>> from celery_continuations.sources import pages
    >>> class TestUsers(SourceConformance):
    ...     def make(self):
    ...         return pages({None: (["ann", "bob"], 2), 2: (["eve"], None)}.__getitem__)
    >>> TestUsers().test_it_goes_on_after_every_item()
    """

    # -- hook

    def make(self) -> Source:
        """Return a new source; of the same two items or more, each time."""
        raise NotImplementedError

    # -- cursors

    def test_it_has_items_enough(self) -> None:
        """Fewer than two could not be told apart from none."""
        assert len(self._pairs()) >= 2, "make() is to return a source of two items or more"

    def test_it_yields_the_same_again(self) -> None:
        """From its beginning, when it is read again, and when it is made again."""
        source = self.make()
        expected = self._pairs()
        for what, pairs in (("once", source.read(None)), ("twice", source.read(None))):
            assert list(pairs) == expected, f"read {what}, it yields something else than another of its kind"

    def test_it_goes_on_after_every_item(self) -> None:
        """From the cursor after it, as it comes out of a snapshot: the rest, and nothing else."""
        expected = self._pairs()
        for place, (item, cursor) in enumerate(expected, 1):
            rest = list(self.make().read(_restored(cursor)))
            assert rest == expected[place:], (
                f"after item {place}, {item!r}, from cursor {cursor!r} on: {len(rest)} items {rest[:3]!r}..., "
                f"to be {len(expected) - place} items {expected[place : place + 3]!r}..."
            )

    def test_its_cursors_stay_as_they_are(self) -> None:
        """A cursor that was passed on is not changed by reading on, and none is the beginning."""
        kept, texts = [], []
        for _, cursor in self.make().read(None):
            assert cursor is not None, "None is the beginning, and cannot come after an item"
            kept.append(cursor)
            texts.append(codec.dumps(cursor, "the cursor"))
        assert [codec.dumps(cursor, "the cursor") for cursor in kept] == texts

    def test_two_can_be_read_at_once(self) -> None:
        """Of one source: neither moves the other."""
        expected = self._pairs()
        source = self.make()
        one, other = iter(source.read(None)), iter(source.read(None))
        first = list(islice(one, 1))
        assert list(other) == expected
        assert first + list(one) == expected

    # -- in a task

    def test_it_goes_on_in_a_task(self) -> None:
        """That is interrupted after each item, or each batch, of any size: each item is passed on once, in order."""
        expected = [item for item, _ in self._pairs()]
        for size in (None, *range(1, len(expected) + 2)):
            for every in (1, 2, 3):
                done: list[Any] = []
                for rows in self._executions(size, every, limit=len(expected) + 2):
                    done += [rows] if size is None else rows
                assert done == expected, f"in batches of {size}, interrupted after every {every}"

    def test_its_progress_goes_forward(self) -> None:
        """And not beyond the total, where it is known."""
        opened = opener("source", self.make())()
        before = 0
        for cursor in [None, *(cursor for _, cursor in self._pairs())]:
            done, total = opened.reader.progress(cursor)
            if done is not None:
                assert done >= before, f"at {cursor!r} {done} are done, before it {before}"
                assert total is None or done <= total, f"at {cursor!r} {done} are done, of {total}"
                before = done

    # -- what the tests share

    def _pairs(self) -> list[tuple[Any, Any]]:
        return [(item, _restored(cursor)) for item, cursor in self.make().read(None)]

    def _executions(self, size: int | None, every: int, limit: int) -> Iterator[Any]:
        """Yield what a loop gets, in as many executions as it takes."""
        text = Snapshot().dumps()
        for _ in range(limit):
            run = Run("source", Snapshot.loads(text), _Host())
            try:
                for count, rows in enumerate(run.declare(Iteration(run, "loop", opener("loop", self.make(), size))), 1):
                    run.attention = count == every
                    yield rows
                run.finish()
                return
            except Interrupt:
                run.snapshot.resumptions += 1
            text = run.take_snapshot().dumps()
        raise AssertionError(
            f"interrupted after every {every} of its items, the source is not at its end {limit} times"
        )


class _Host:
    """Interrupts whenever it is asked."""

    def guard(self, step: str | None, own: Any) -> None:
        pass

    def attend(self, run: Run) -> str | None:
        return "conformance"

    def save(self, run: Run) -> None:
        pass

    def join(self, run: Run) -> None:
        pass

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        pass

    def back_off(self, run: Run, seconds: float) -> NoReturn:
        raise InvalidStepError(f"the source holds back for {seconds:g} s, and cannot be tested meanwhile")

    def is_of_item(self, run: Run, step: Step, error: Exception) -> bool:
        return False

    def unchecked(self, run: Run, step: Step) -> None:
        pass


def _restored(cursor: Any) -> Any:
    return codec.loads(codec.dumps(cursor, "the cursor"), "the cursor")
