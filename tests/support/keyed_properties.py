"""Properties of sources by key, for all kinds of keys and tables."""

from __future__ import annotations

from itertools import islice
from typing import Any

from hypothesis import strategies as st

from celery_continuations.core import codec
from celery_continuations.sources import opener
from tests.support.tables import KEYS


def saved(cursor: Any) -> Any:
    """Return the cursor as the next execution gets it."""
    return codec.loads(codec.dumps(cursor))


def resumes_everywhere(table: Any, kind: str, data: st.DataObject) -> None:
    """From the cursor after each row or batch, exactly the remaining rows are read."""
    keys = data.draw(st.lists(KEYS[kind], unique=True, max_size=12))
    chunk, batch = data.draw(st.integers(1, 5)), data.draw(st.none() | st.integers(1, 7))
    descending = data.draw(st.booleans())
    table.clear()
    table.insert(keys)
    expected = sorted(keys, reverse=descending)

    def read(cursor: Any) -> list[tuple[list[Any], Any]]:
        step_read = opener("rows", table.source(chunk, descending=descending), batch)().reader.read
        pairs = [(items if batch else [items], after) for items, after in step_read(cursor)]
        return [([table.key_of(item) for item in items], after) for items, after in pairs]

    def flat(pairs: list[tuple[list[Any], Any]]) -> list[Any]:
        return [key for keys, _ in pairs for key in keys]

    pairs = read(None)
    assert flat(pairs) == expected
    assert [len(items) for items, _ in pairs[:-1]] == [batch or 1] * len(pairs[:-1])
    done = 0
    for items, cursor in pairs:
        done += len(items)
        assert flat(read(saved(cursor))) == expected[done:]


def sees_what_comes_after(table: Any, kind: str, data: st.DataObject) -> None:
    """Rows are inserted and deleted during reading: the rows after the cursor are each read once."""
    keys = data.draw(st.lists(KEYS[kind], unique=True, min_size=1, max_size=12))
    others = [key for key in data.draw(st.lists(KEYS[kind], unique=True, max_size=6)) if key not in keys]
    gone = data.draw(st.sets(st.sampled_from(keys)))
    stop = data.draw(st.integers(0, len(keys)))
    descending = data.draw(st.booleans())
    table.clear()
    table.insert(keys)
    source = table.source(data.draw(st.integers(1, 5)), descending=descending)
    going = source.read(None)
    pairs = [(table.key_of(row), cursor) for row, cursor in islice(going, stop)]
    before = [key for key, _ in pairs]
    table.delete(gone)
    table.insert(others)

    cursor = saved(pairs[-1][1]) if pairs else None
    left = sorted({*keys, *others} - gone, reverse=descending)
    expected = [key for key in left if not pairs or ((key < before[-1]) if descending else (key > before[-1]))]
    assert [table.key_of(row) for row, _ in source.read(cursor)] == expected

    # The running loop may have read a chunk already, so rows that were deleted or inserted in that chunk may differ.
    rest = [cursor for _, cursor in going]
    assert rest == sorted(set(rest), reverse=descending)
    assert not {*before} & {*rest}
    assert {*keys} - gone <= {*before, *rest} <= {*keys, *others}
