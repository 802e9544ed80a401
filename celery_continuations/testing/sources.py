"""The requirements of a source, as tests: run them on your own source."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NoReturn

from celery_continuations.core import codec
from celery_continuations.core.iteration import Iteration
from celery_continuations.core.reader import NoItem
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import ACCEPTED, Snapshot
from celery_continuations.core.step import Step
from celery_continuations.exceptions import Interrupt, InvalidStepError
from celery_continuations.sources import Source, opener
from celery_continuations.sources.reading import items_only

__all__ = ["SourceConformance"]


class SourceConformance:
    """The tests of a source; pytest runs them in a subclass whose ``make`` returns one.

    A few dozen items are enough: each test continues from every one of them.

    >>> from celery_continuations.sources import pages
    >>> class TestUsers(SourceConformance):
    ...     def make(self):
    ...         return pages({None: (["ann", "bob"], 2), 2: (["eve"], None)}.__getitem__)
    >>> TestUsers().test_it_goes_on_after_every_item()
    """

    # -- hook

    def make(self) -> Source:
        """Return a new source with two items or more, the same each time."""
        raise NotImplementedError

    # -- cursors

    def test_it_has_items_enough(self) -> None:
        """There are two items or more: fewer would prove nothing."""
        assert len(self._pairs()) >= 2, "make() must return a source of two items or more"

    def test_it_yields_the_same_again(self) -> None:
        """Reading from the beginning yields the same items from the same source, and from a new one."""
        source = self.make()
        expected = self._pairs()
        for what, pairs in (("once", _items(source)), ("twice", _items(source))):
            assert pairs == expected, f"read {what}, it yields other items than another source from make()"

    def test_it_goes_on_after_every_item(self) -> None:
        """From the cursor after an item, as restored from a snapshot, it yields exactly the remaining items.

        So it does from the cursor of each ``NoItem``.
        """
        expected = self._pairs()
        done, item = 0, "the beginning"
        for pair in self._all():
            if isinstance(pair, NoItem):
                cursor = pair.cursor
                if not pair.has_moved:
                    continue
            else:
                done, item, cursor = done + 1, repr(pair[0]), pair[1]
            rest = _items(self.make(), _restored(cursor))
            assert rest == expected[done:], (
                f"after item {done}, {item}, from cursor {cursor!r} on: {len(rest)} items {rest[:3]!r}..., "
                f"expected {len(expected) - done} items {expected[done : done + 3]!r}..."
            )

    def test_its_cursors_stay_as_they_are(self) -> None:
        """Further reading does not change a cursor, and no cursor is None, which means the beginning."""
        kept, texts = [], []
        for _, cursor in items_only(iter(self.make().read(None))):
            assert cursor is not None, "None means the beginning, so it cannot be the cursor after an item"
            kept.append(cursor)
            texts.append(codec.dumps(cursor, "the cursor"))
        assert [codec.dumps(cursor, "the cursor") for cursor in kept] == texts

    def test_two_can_be_read_at_once(self) -> None:
        """Two readers of one source do not affect each other."""
        expected = self._pairs()
        source = self.make()
        one, other = items_only(iter(source.read(None))), items_only(iter(source.read(None)))
        first = list(islice(one, 1))
        assert list(other) == expected
        assert first + list(one) == expected

    # -- in a task

    def test_it_goes_on_in_a_task(self) -> None:
        """A task interrupted after each item, or batch of any size, receives each item once, in order.

        It is interrupted at each ``NoItem`` as well.
        """
        expected, limit = [item for item, _ in self._pairs()], len(self._all()) + 2
        for size in (None, *range(1, len(expected) + 2)):
            for every in (1, 2, 3):
                done: list[Any] = []
                for rows in self._executions(size, every, limit=limit):
                    done += [rows] if size is None else rows
                assert done == expected, f"in batches of {size}, interrupted after every {every}"

    def test_its_progress_goes_forward(self) -> None:
        """Progress never decreases, and does not exceed the total, if that is known."""
        opened = opener("source", self.make())()
        before = 0
        for cursor in [None, *(cursor for _, cursor in self._pairs())]:
            done, total = opened.reader.progress(cursor)
            if done is not None:
                assert done >= before, f"at {cursor!r} {done} items are done, but {before} before it"
                assert total is None or done <= total, f"at {cursor!r} {done} items are done, of {total}"
                before = done

    # -- what the tests share

    def _pairs(self) -> list[tuple[Any, Any]]:
        return [(item, _restored(cursor)) for item, cursor in _items(self.make())]

    def _all(self) -> list[Any]:
        """Return what a loop reads: all pairs, and each :class:`NoItem`."""
        return list(opener("source", self.make())().reader.resume(None, None, ACCEPTED))

    def _executions(self, size: int | None, every: int, limit: int) -> Iterator[Any]:
        """Yield what a loop receives, over all executions."""
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
            f"interrupted after every {every} items, the source has not ended after {limit} executions"
        )


class _Host:
    """A host that interrupts at each checkpoint that calls it."""

    def guard(self, step: str | None, own: Any) -> None:
        pass

    def attend(self, run: Run) -> str | None:
        return "conformance"

    def is_due(self, run: Run) -> bool:
        return False  # batches stay whole, so that they can be compared

    def save(self, run: Run) -> None:
        pass

    def join(self, run: Run) -> None:
        pass

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        pass

    def back_off(self, run: Run, seconds: float) -> NoReturn:
        raise InvalidStepError(f"the source is throttled for {seconds:g} s and cannot be tested meanwhile")

    def is_of_item(self, run: Run, step: Step, error: Exception) -> bool:
        return False

    def many_steps(self, run: Run, step: Step, number: int) -> None:
        pass

    def unchecked(self, run: Run, step: Step) -> None:
        pass


def _items(source: Source, cursor: Any = None) -> list[tuple[Any, Any]]:
    return list(items_only(iter(source.read(cursor))))


def _restored(cursor: Any) -> Any:
    return codec.loads(codec.dumps(cursor, "the cursor"), "the cursor")
