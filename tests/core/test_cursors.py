"""Cursors: types, moves, iteration, keys."""

from __future__ import annotations

import itertools
import json
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from celery_continuations.core import codec
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.exceptions import (
    ErrorBudgetError,
    Interrupt,
    InvalidStepError,
    UnadvanceableCursorError,
    UnserializableValueError,
)
from celery_continuations.sources import throttled

ZONES = st.sampled_from(
    [
        None,
        timezone.utc,
        ZoneInfo("Europe/Berlin"),
        ZoneInfo("UTC"),
        timezone(timedelta(hours=5, minutes=30)),
        timezone(timedelta(hours=-3), "BRT"),
        timezone(timedelta(0), "GMT"),
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.decimals(allow_nan=False),
    st.dates(),
    st.timedeltas(),
    st.uuids(),
    st.datetimes(timezones=ZONES),
    st.times(timezones=ZONES),
    st.text(st.characters(categories=["Cs", "Lu"])),
)
HASHABLE = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.text().map("~".__add__)), inner, max_size=4),
        st.dictionaries(HASHABLE, inner, max_size=4),
    ),
    max_leaves=12,
)


def same(one: Any, two: Any) -> bool:
    """Equal, types included, all the way down."""
    if type(one) is not type(two):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return len(one) == len(two) and all(
            same(k1, k2) and same(v1, v2) for (k1, v1), (k2, v2) in zip(one.items(), two.items(), strict=True)
        )
    if isinstance(one, (datetime, time)):
        return one == two and (str(one.tzinfo), one.fold) == (str(two.tzinfo), two.fold)
    if isinstance(one, Decimal):
        return str(one) == str(two)
    return bool(one == two)


@example("\ud800\udc00")
@settings(deadline=None)
@given(VALUES)
def test_what_comes_back_equals_what_was_set_type_included(value: Any) -> None:
    text = codec.dumps(value)
    json.dumps(json.loads(text), allow_nan=False)  # any JSON reader can take it
    assert text.isascii()
    assert same(codec.loads(text), value)


def test_floats_and_integers_that_json_has_no_words_for() -> None:
    for value in (float("inf"), -float("inf"), 10**5000, -(10**5000)):
        assert codec.loads(codec.dumps(value)) == value
    assert str(codec.loads(codec.dumps(float("nan")))) == "nan"


class Colour(IntEnum):
    RED = 1


class Pair(NamedTuple):
    one: int
    two: int


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, Colour.RED, Pair(1, 2), [Colour.RED], {"a": object()}, {frozenset(): 1}, bytearray(b"x"), 1j],
)
def test_values_of_other_types_are_refused_by_name(value: Any) -> None:
    with pytest.raises(UnserializableValueError, match="the cursor cannot be saved: .* (is not one of|of type)"):
        codec.dumps(value, "the cursor")


def test_a_value_that_contains_itself() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(UnserializableValueError, match="nested too deeply, or contains itself"):
        codec.dumps(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"~no":1}',
        '{"~d":"yesterday"}',
        '{"~u":"x"}',
        '{"~b":"*"}',
        '{"~dt":[1]}',
        '{"~dt":["2026-01-01T00:00:00",0,"No/Such"]}',
        '{"~m":[[[],1]]}',
        "[" * 100_000,
    ],
)
def test_what_cannot_be_decoded_is_named(text: str) -> None:
    with pytest.raises(UnserializableValueError, match="the cursor (is not JSON|can no longer be decoded)"):
        codec.loads(text, "the cursor")


@settings(deadline=None)
@given(st.text())
def test_a_snapshot_of_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UnserializableValueError, match="the snapshot cannot be read"):
        Snapshot.loads(text)


def rows_below(seen: list[Any], limit: Any = 500) -> Any:
    def body(task: Any) -> None:
        for step in task.step("records", start=0):
            for record in range(step.cursor, limit):
                seen.append(record)
                step.advance(from_=record)

    return body


def test_ids_below_the_cursor_of_an_interruption_are_done(executions: Any) -> None:
    seen: list[int] = []
    interrupt = executions.execute(rows_below(seen), stop_at={433})
    assert (interrupt.step, interrupt.cursor) == ("records", 433)
    assert seen == list(range(433))
    executions.execute(rows_below(seen))
    assert seen == list(range(500))


def test_advance(executions: Any) -> None:
    class Letter:
        def __init__(self, text: str) -> None:
            self.text = text

        def succ(self) -> str:
            return self.text + "'"

    def body(task: Any) -> Any:
        for step in task.step("one"):
            for cursor in (None, 1.1, True, "a", datetime(2026, 1, 1)):
                step.set(cursor)
                with pytest.raises(UnadvanceableCursorError) as caught:
                    step.advance()
                assert caught.value.cursor == cursor
            with pytest.raises(UnadvanceableCursorError, match=r"cannot advance 1\.1 \(float\)"):
                step.advance(from_=1.1)
            step.advance(from_=1)
            assert step.cursor == 2
            step.advance()
            assert step.cursor == 3
            step.advance(from_=date(2026, 12, 31))
            assert step.cursor == date(2027, 1, 1)
            step.advance(from_=Letter("a"))
            assert step.cursor == "a'"

    executions.execute(body)


def test_a_nested_cursor_resumes_exactly(executions: Any) -> None:
    def body(task: Any) -> None:
        for step in task.step("pairs", start=[0, 0]):
            i, j = step.cursor
            while i < 3:
                while j < 3:
                    seen.append((i, j))
                    j += 1
                    step.set([i, j])
                i, j = i + 1, 0
                step.set([i, j])

    seen: list[tuple[int, int]] = []
    executions.execute(body, stop_at={2})
    assert executions.snapshot.current == ("pairs", [0, 2])
    executions.execute(body)
    assert seen == [(i, j) for i in range(3) for j in range(3)]


def test_a_list_of_mixed_types_resumes_at_its_third(executions: Any) -> None:
    mixed = ["a", 1, None, 2.5, date(2026, 1, 1)]

    def body(task: Any) -> None:
        for item in task.iterate("mixed", mixed):
            seen.append(item)

    seen: list[Any] = []
    executions.execute(body, stop_at={3})
    assert executions.snapshot.current == ("mixed", 3)
    executions.execute(body)
    assert seen == mixed


@pytest.mark.parametrize(
    "cursor", [date(2026, 2, 28), (1, "a", None), {"id": UUID(int=5)}, [datetime(2026, 1, 1, tzinfo=timezone.utc)]]
)
def test_a_cursor_keeps_its_type(executions: Any, cursor: Any) -> None:
    def first(task: Any) -> None:
        for step in task.step("one"):
            step.set(cursor)

    def second(task: Any) -> Any:
        for step in task.step("one"):
            assert step.resumed
            return step.cursor

    executions.execute(first, stop_at={1})
    assert same(executions.execute(second), cursor)


def test_an_undecodable_cursor_reaches_the_tasks_own_error_handling(executions: Any) -> None:
    executions.execute(rows_below([]), stop_at={3})
    executions.text = executions.text.replace('["records",3]', '["records",{"~gone":3}]')

    def body(task: Any) -> str:
        try:
            for _ in task.step("records", start=0):
                pass
        except UnserializableValueError as exc:
            return str(exc)
        return "not raised"

    assert executions.execute(body).startswith("the cursor of step 'records' can no longer be decoded")


def test_a_cursor_that_cannot_be_saved_is_refused_at_the_set(executions: Any) -> None:
    def body(task: Any) -> None:
        for step in task.step("one", start=1):
            for bad in (Colour.RED, (1, Colour.RED), object()):
                with pytest.raises(UnserializableValueError, match="the cursor of step 'one' cannot be saved"):
                    step.set(bad)
            assert step.cursor == 1

    executions.execute(body)


def test_containers_are_copied(executions: Any) -> None:
    def body(task: Any) -> None:
        for step in task.step("one"):
            cursor = [1]
            step.set(cursor)
            cursor.append(2)
            assert step.cursor == [1]
            inner = ([1],)
            step.set(inner)
            inner[0].append(2)
            assert step.cursor == ([1],)

    executions.execute(body)


def test_advanced_and_resumed(executions: Any) -> None:
    def body(task: Any) -> None:
        for step in task.step("one", start=3):
            facts.append((step.resumed, step.advanced))
            step.set(3)
            facts.append((step.resumed, step.advanced))
            step.set(4)
            facts.append((step.resumed, step.advanced))

    facts: list[tuple[bool, bool]] = []
    executions.execute(body, stop_at={2})
    executions.execute(body)
    # the second 3 leaves a resumed run at 4 behind, so the cursor has moved
    assert facts == [(False, False), (False, False), (True, False), (True, True), (True, False)]


def loop(source: Any, seen: list[Any], **options: Any) -> Any:
    def body(task: Any) -> None:
        for item in task.iterate("loop", source, **options):
            seen.append(item)

    return body


class Letters:
    """A sequence that is not a list: len and indices."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, place: int) -> str:
        if not 0 <= place < 5:
            raise IndexError
        return "abcde"[place]


@pytest.mark.parametrize(
    ("source", "items"),
    [
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
        ((1, 2, 3), [1, 2, 3]),
        (range(10, 0, -3), [10, 7, 4, 1]),
        ([], []),
        (lambda: (n * n for n in range(5)), [0, 1, 4, 9, 16]),
        (dict.fromkeys("abc"), ["a", "b", "c"]),
        (Letters(), list("abcde")),
        (list, []),
        (lambda: map(str, range(3)), ["0", "1", "2"]),
    ],
)
def test_every_source_resumes_at_every_position(executions: Any, source: Any, items: list[Any]) -> None:
    for place in range(1, len(items) + 2):
        seen: list[Any] = []
        fresh = type(executions)()
        outcome = fresh.execute(loop(source, seen), stop_at={place})
        assert isinstance(outcome, Interrupt) == (place <= len(items))
        assert seen == items[:place]
        fresh.execute(loop(source, seen))
        assert seen == items


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    items=st.lists(st.integers(), max_size=40), size=st.integers(1, 7), stops=st.sets(st.integers(1, 12), max_size=6)
)
def test_batches_resume_at_the_next_batch(executions: Any, items: list[int], size: int, stops: set[int]) -> None:
    executions = type(executions)()
    seen: list[list[int]] = []
    body = loop(items, seen, batch=size)
    for stop in sorted(stops):
        executions.execute(body, stop_at={stop})
    executions.execute(body)
    assert [item for batch in seen for item in batch] == items
    assert all(len(batch) == size for batch in seen[:-1])


def test_batches_of_three(executions: Any) -> None:
    seen: list[list[int]] = []
    executions.execute(loop(range(10), seen, batch=3))
    assert [len(batch) for batch in seen] == [3, 3, 3, 1]


def test_an_interrupted_batch_restarts(executions: Any) -> None:
    def body(task: Any) -> None:
        for batch in task.iterate("loop", range(6), batch=3):
            for item in batch:
                if item == fail_at:
                    raise ValueError
                seen.append(item)

    seen: list[int] = []
    fail_at = 4
    with pytest.raises(ValueError, match="^$"):
        executions.execute(body)
    fail_at = None  # type: ignore[assignment]
    executions.execute(body)
    assert seen == [0, 1, 2, 3, 3, 4, 5]


def test_an_empty_source_completes_and_says_so(executions: Any) -> None:
    executions.execute(loop([], []))
    assert executions.events == [("step_started", "loop"), ("step_completed", "loop")]


def test_a_failing_element_is_tried_again_from_its_own_cursor(executions: Any) -> None:
    def body(task: Any) -> None:
        for item in task.iterate("loop", range(6)):
            if item == 3 and not failed:
                failed.append(item)
                raise ValueError
            seen.append(item)

    seen: list[int] = []
    failed: list[int] = []
    executions.execute(body, stop_at={2})
    with pytest.raises(ValueError, match="^$"):
        executions.execute(body)
    assert executions.snapshot.current == ("loop", 3)
    executions.execute(body, stop_at={1})
    executions.execute(body)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_the_stop_is_looked_at_after_the_element(executions: Any) -> None:
    seen: list[int] = []
    executions.execute(loop(range(5), seen), stop_at={1})
    assert seen == [0]


def test_a_source_function_is_called_only_if_the_step_is_still_to_be_done(executions: Any) -> None:
    def body(task: Any) -> None:
        for _ in task.iterate("loop", lambda: calls.append(1) or [1]):
            pass
        task.step("two", int)

    calls: list[int] = []
    executions.execute(body, stop_at={2})
    executions.execute(body)
    assert calls == [1]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ({1, 2}, "no order"),
        (frozenset("a"), "no order"),
        ("abc", "a string"),
        (b"abc", "a string"),
        (5, "not iterable"),
        (None, "not iterable"),
    ],
)
def test_what_cannot_be_iterated_is_refused_with_the_reason(executions: Any, source: Any, why: str) -> None:
    for given_as in (source, lambda: source):
        with pytest.raises(InvalidStepError, match=f"cannot iterate over an? .*{why}"):
            type(executions)().execute(loop(given_as, []))


@pytest.mark.parametrize("batch", [0, -1, 2.5, "3", True])
def test_a_bad_batch(executions: Any, batch: Any) -> None:
    with pytest.raises(InvalidStepError, match="batch must be an int of 1 or more"):
        executions.execute(loop([1], [], batch=batch))


@pytest.mark.parametrize("start", [-1, "a", 1.5])
def test_a_start_that_is_not_a_position_is_refused(executions: Any, start: Any) -> None:
    with pytest.raises(InvalidStepError, match="iterates by position and cannot start at"):
        executions.execute(loop([1], [], start=start))


def test_start_total_and_cursor_of_an_iteration(executions: Any) -> None:
    def body(task: Any) -> None:
        rows = task.iterate("loop", range(5), start=2)
        for item in rows:
            facts.append((item, rows.cursor, rows.total, rows.resumed))

    facts: list[Any] = []
    executions.execute(body, stop_at={2})
    executions.execute(body)
    assert facts == [(2, 2, 5, False), (3, 3, 5, False), (4, 4, 5, True)]
    assert executions.snapshot.progress == (None, None)


def test_progress_of_the_current_step(executions: Any) -> None:
    executions.execute(loop(range(5), []), stop_at={2})
    assert executions.snapshot.progress == (2, 5)
    unknown = type(executions)()
    unknown.execute(loop(lambda: iter(range(5)), []), stop_at={2})
    assert unknown.snapshot.progress == (2, None)
    told = type(executions)()
    told.execute(loop(lambda: iter(range(5)), [], total=5), stop_at={2})
    assert told.snapshot.progress == (2, 5)


class Countdown:
    """A user-defined source whose cursor is the number itself."""

    def read(self, cursor: Any) -> Any:
        for number in range(9 if cursor is None else cursor, 0, -1):
            yield number, number - 1

    def __len__(self) -> int:
        return 9


@pytest.mark.parametrize("given_as", [Countdown(), Countdown])
def test_a_source_of_ones_own(executions: Any, given_as: Any) -> None:
    seen: list[int] = []
    executions.execute(loop(given_as, seen), stop_at={4})
    assert executions.snapshot.current == ("loop", 5)
    executions.execute(loop(given_as, seen))
    assert seen == list(range(9, 0, -1))


def test_keys_are_the_same_where_a_place_is_repeated_and_nowhere_else(executions: Any) -> None:
    def body(task: Any) -> None:
        keys.append(("before", task.run.key()))
        for item in task.iterate("loop", range(4)):
            keys.append((f"item {item}", task.run.key()))
        for step in task.step("two", start=0):
            while step.cursor < 2:
                keys.append((f"two at {step.cursor}", step.key))
                step.advance()

    keys: list[tuple[str, str]] = []
    executions.execute(body, stop_at={2})
    executions.execute(body, stop_at={4})
    executions.execute(body)
    by_place: dict[str, set[str]] = {}
    for place, key in keys:
        by_place.setdefault(place, set()).add(key)
    assert all(len(found) == 1 for found in by_place.values())
    assert len(set.union(*by_place.values())) == len(by_place) == 7


# -- throttled loops, and failed items


def test_a_throttled_loop_resumes_at_its_cursor(executions: Any) -> None:
    seen: list[int] = []
    holds = [False, False, True, False, False, True, False]

    def body(task: Any) -> None:
        for number in task.iterate("loop", throttled(range(4), lambda: holds.pop(0), 5)):
            seen.append(number)

    interrupt = executions.execute(body)
    assert (str(interrupt), seen) == ("Interrupted at loop:2 (throttled for 5 s)", [0, 1])
    interrupt = executions.execute(body)
    assert (interrupt.cursor, seen) == (4, [0, 1, 2, 3])
    assert executions.snapshot.completed == {}
    assert executions.execute(body) is None
    assert (list(executions.snapshot.completed), seen) == (["loop"], [0, 1, 2, 3])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.booleans(), max_size=6), st.integers(1, 3))
def test_what_fails_is_put_aside_once_wherever_the_loop_is_interrupted(
    executions: Any, fails: list[bool], size: int
) -> None:
    expected = [
        (place or None, "OSError: no") for place in range(0, len(fails), size) if any(fails[place : place + size])
    ]

    def body(task: Any) -> Any:
        rows = task.iterate("loop", fails, batch=size, on_error=6)
        for batch in rows:
            with rows.attempt():
                if any(batch):
                    raise OSError("no")
            rows.checkpoint()
        task.step("after", lambda: None)
        return rows.failed

    for first, second in itertools.product(range(1, 14), repeat=2):
        fresh = type(executions)()
        for stop in (first, second):
            outcome = fresh.execute(body, stop_at={stop})
            if not isinstance(outcome, Interrupt):
                break
        else:
            outcome = fresh.execute(body)
        assert outcome == expected


def test_past_its_budget_the_loop_raises_with_all_that_failed(executions: Any) -> None:
    def body(task: Any) -> None:
        rows = task.iterate("loop", ["a", "b", "c"], on_error=1)
        for text in rows:
            with rows.attempt():
                raise OSError(text)

    with pytest.raises(ErrorBudgetError) as error:
        executions.execute(body)
    assert error.value.failed == [(None, "OSError: a"), (1, "OSError: b")]
    assert executions.snapshot.failed_items == [[None, "OSError: a"], [1, "OSError: b"]]


def test_the_text_of_an_error_is_kept_up_to_a_length(executions: Any) -> None:
    def body(task: Any) -> Any:
        rows = task.iterate("loop", [1], on_error=1)
        for _ in rows:
            with rows.attempt():
                raise OSError("x" * 10_000)
        return rows.failed

    ((_, text),) = executions.execute(body)
    assert len(text) == 200


def test_a_snapshot_of_before_items_were_put_aside() -> None:
    assert Snapshot.loads('{"version":1,"current":["loop",3]}').failed_items == []
    assert "aside" not in Snapshot(current=("loop", 3)).dumps()
