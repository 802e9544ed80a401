"""A loop never skips an item silently: its behaviour when its source has changed between two executions.

Each source is tried with random rows, changes, stops and kills (:mod:`tests.support.changing`).  A row that is there
throughout is done exactly once after stops, at least once after kills, or the run ends with an error that names the
change.  What no source can notice, and so is left out of this property:

======================================  ==============================================================================
Source                                  What goes unnoticed
======================================  ==============================================================================
by position: sequences, ranges,         changes that leave at the saved place an item with the same fingerprint as
generators, lists of model instances    before: items moved across the place in equal numbers, equal items
in another order than that of the key
items without a fingerprint             every change that leaves at least as many items as before, and all where the
                                        source has no length
pages                                   the same within a page, and between pages whose token counts pages or items
lines, csv_rows, json_lines             changes that leave the 4 KiB before the saved place as they were, such as
                                        lines of the same length, moved across it, that end in the same 4 KiB
nested                                  the same in each of its levels
keyed                                   rows that were out of order where they had not been read yet, and are in order
                                        in the next execution; another function of the same key type
keyed_pages                             a function that returns the rows of a page in another order than that of the
                                        key
all by key                              rows inserted before the place: they are not visited
======================================  ==============================================================================
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import random
import re
from collections import namedtuple
from collections.abc import Callable, Iterator
from itertools import chain, count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from celery import states
from django.db import connections
from django.test.utils import CaptureQueriesContext
from sqlalchemy import orm

from celery_continuations.core.iteration import Iteration
from celery_continuations.core.reader import NOTHING, Keep
from celery_continuations.core.snapshot import ACCEPTED, Snapshot
from celery_continuations.exceptions import InvalidStepError, SourceChangedError
from celery_continuations.sources import base as base_module
from celery_continuations.sources import (
    csv_rows,
    json_lines,
    keyed,
    keyed_pages,
    lines,
    nested,
    nesting,
    opener,
    ordered,
    paged,
    pages,
    positions,
    reading,
)
from celery_continuations.sources.file_source import FileSource
from celery_continuations.sources.instances import Instances
from celery_continuations.sources.sqlalchemy import select_rows
from celery_continuations.stores import Status
from tests.support import changing
from tests.support.changing import ByKey, Executions, InKeyOrder, Row, Violation, cases, changed
from tests.support.tables import DjangoTable, SQLAlchemyTable

pytestmark = pytest.mark.exhaustive


def author(row: Row) -> Any:
    from tests.support.django_models import Author

    made = Author(pk=row.uid, name=str(row.value))
    made._state.adding = False
    return made


# -- the property


def check(kind: Any, number: int) -> None:
    """Run cases; few of them may be of what cannot be noticed, and some must be of each other outcome."""
    done = [case.end for case in cases(kind, range(number)) if not case.may_miss]
    assert len(done) > number * 0.7
    assert "done" in done


@pytest.mark.parametrize("kind", changing.plain_kinds(), ids=lambda kind: kind.name)
def test_by_position(kind: Any) -> None:
    check(kind, 300)


@pytest.mark.parametrize("kind", changing.instances(author), ids=lambda kind: kind.name)
def test_lists_of_model_instances(kind: Any) -> None:
    check(kind, 300)


@pytest.mark.parametrize("kind", changing.keyed_kinds(), ids=lambda kind: kind.name)
def test_by_key(kind: Any) -> None:
    check(kind, 200)


@pytest.mark.parametrize("kind", changing.paged_kinds(), ids=lambda kind: kind.name)
def test_pages(kind: Any) -> None:
    check(kind, 300)


def test_files(tmp_path: Path) -> None:
    for kind in changing.file_kinds(tmp_path):
        check(kind, 100)


@pytest.mark.parametrize("number", range(11))
def test_sources_within_others(tmp_path: Path, number: int) -> None:
    check(changing.nested_kinds(tmp_path, author)[number], 250)


def test_ranges() -> None:
    """By start, step and length: each range that can follow another one."""
    ranges = [range(start, stop, step) for start in (0, 1) for stop in (0, 3, 4, 7) for step in (1, 2)]
    for before in ranges:
        for done in range(1, len(before) + 1):
            for now in ranges:
                executions = Executions()
                assert executions.loop(before, done) == list(before)[:done]
                found = executions.loop(now)
                if (before.start, before.step) != (now.start, now.step) or len(now) < done:
                    assert isinstance(found, SourceChangedError), (before, done, now)
                else:
                    assert found == list(now)[done:], (before, done, now)


def test_a_range_by_position_in_a_list_is_one_by_its_items() -> None:
    assert "then 1, now 2" in changed(list(range(4)), 2, list(range(0, 8, 2)))


class Table:
    """A table that has the rows of a world."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def having(self, rows: list[Row]) -> Any:
        self.table.clear()
        self.table.insert([row.uid for row in rows])
        return self.table


def uid(row: Any) -> int:
    return int(row.key)


class ListOfQuery(InKeyOrder):
    """A list made of a query, whose rows come in the order of the key."""

    def __init__(self, name: str, make: Callable[[list[Row]], Any]) -> None:
        super().__init__(name, lambda row: None, "key")
        self.source, self.uids = make, uid  # type: ignore[method-assign]

    def spoil(self, item: Any, rng: random.Random) -> None:
        item.key = 0


@pytest.mark.parametrize("how", ["queryset", "iterator", "list", "descending"])
def test_rows_of_django(how: str) -> None:
    table = Table(DjangoTable("int"))

    def source(rows: list[Row]) -> Any:
        query = table.having(rows).rows.order_by("-pk" if how == "descending" else "pk")
        return {"iterator": lambda: query.iterator(chunk_size=2), "list": lambda: list(query)}.get(how, lambda: query)()

    name = f"rows of Django: {how}"
    check(ListOfQuery(name, source) if how == "list" else ByKey(name, source, uid, descending=how == "descending"), 30)


@pytest.mark.parametrize("how", ["select_rows", "list"])
def test_rows_of_sqlalchemy(how: str) -> None:
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    with orm.Session(engine) as session:
        made = SQLAlchemyTable("int", session)
        table = Table(made)

        def source(rows: list[Row]) -> Any:
            table.having(rows)
            session.expunge_all()
            if how == "list":
                return list(session.scalars(sa.select(made.entity).order_by(made.entity.key)))
            return made.source(2)

        name = f"rows of SQLAlchemy: {how}"
        check(ByKey(name, source, uid), 30)


# -- break a check, and see the property fail


def nothing(*args: Any, **options: Any) -> None:
    return None


BREAKS: dict[str, tuple[Any, str, Any, str]] = {
    "positions are not compared": (positions.Positions, "_compare", nothing, "list of ints"),
    "dicts are kept without a copy": (positions.Prints, "_choose", lambda *a: Keep(same=True), "dict rows"),
    "lists are kept without a copy": (positions.Prints, "_choose", lambda *a: Keep(same=True), "lists"),
    "nothing is kept of batches": (base_module.Batched, "keep_of", lambda *a: NOTHING, "dict rows"),
    "nested sources are not compared": (nesting.Nested, "_compare", nothing, "things in position"),
    "inserted outer items are not passed over": (
        reading, "_LOOKED_AHEAD", 0, "position in keyed"),
    "inner marks are not saved": (nesting.Nested, "mark", nothing, "nested dicts in dict rows"),
    "files have no mark": (FileSource, "mark", nothing, "lines, rows of 700"),
    "files are not compared": (FileSource, "_compare", nothing, "csv, rows of 40"),
    "pages are not compared": (paged._Pages, "_compare", nothing, "pages by page"),
    "addresses are taken for places in the data": (paged, "_counts", lambda token: False, "pages by address"),
    "the order of keys is not looked at": (ordered._Keyed, "_follows", lambda *a: True, "keyed by name"),
    "keys of instances are taken for positions": (
        Instances, "_take_keys", lambda self: False, "instances in key order"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_breaking_a_check_breaks_the_property(name: str, monkeypatch: Any, tmp_path: Path) -> None:
    owner, attribute, broken, kind_name = BREAKS[name]
    monkeypatch.setattr(owner, attribute, broken)
    kinds = [
        *changing.plain_kinds(),
        *changing.instances(author),
        *changing.keyed_kinds(),
        *changing.paged_kinds(),
        *changing.file_kinds(tmp_path),
        *changing.nested_kinds(tmp_path, author),
    ]
    kind = next(kind for kind in kinds if kind.name == kind_name)
    with pytest.raises(Violation):
        list(cases(kind, range(3000)))


# -- correct loops: no false alarm


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int


class Colour(enum.Enum):
    RED = 1
    GREEN = 2
    BLUE = 3


class Model:
    """Looks like a pydantic model."""

    model_fields: dict[str, Any] = {"number": int}

    def __init__(self, number: int) -> None:
        self.number = number


Named = namedtuple("Named", "number name")


def everyday(
    rng: random.Random,
) -> Iterator[tuple[str, Callable[[], Any], Callable[[Any], Any] | None, dict[str, Any]]]:
    """Yield loops: a name, a function that makes the source in each execution, what the body does to an item."""
    from tests.support.django_models import Author

    size, start = rng.randrange(1, 20), rng.randrange(100)
    numbers, grown = rng.sample(range(1000), size), count()

    def authors(ordered_by: Callable[[Any], Any] | None = None) -> list[Any]:
        found = [author(Row(number, number % 7)) for number in sorted(numbers)]
        return found if ordered_by is None else sorted(found, key=ordered_by)

    def moving() -> Any:
        return [{"id": number, "views": random.random(), "url": object()} for number in numbers]

    def lower(row: Any) -> None:
        row["email"] = row["email"].lower()
        row.pop("age")

    def save(made: Any) -> None:
        made.pk, made._state.adding = start, False

    def save_all(made: list[Any]) -> None:
        for one in made:
            save(one)

    yield "dict rows that are changed", lambda: [{"email": f"A{n}@X", "age": n} for n in numbers], lower, {}
    yield "items of an API", moving, lambda row: row.update(views=0), {}
    yield "filtered", lambda: [one for one in authors() if one.pk % 2], None, {}
    yield "sorted by Python", lambda: authors(lambda one: (one.name, -one.pk)), None, {}
    yield "a sample", lambda: random.Random(7).sample(authors(), min(5, size)), None, {}
    yield "chained", lambda: list(chain(authors(), authors())), None, {}
    yield "unsaved", lambda: [Author(name=str(number)) for number in numbers], save, {}
    yield "unsaved, in batches", lambda: [Author(name=str(number)) for number in numbers], save_all, {"batch": 3}
    yield "copied", authors, changing_copy, {}
    yield "namedtuples", lambda: [Named(number, str(number)) for number in numbers], None, {}
    yield "dataclasses", lambda: [Point(number, start) for number in numbers], None, {}
    yield "enums", lambda: list(Colour), None, {}
    yield "models like those of pydantic", lambda: list(map(Model, numbers)), lambda one: setattr(one, "number", 0), {}
    yield "enumerate", lambda: enumerate(authors()), lambda pair: changing_copy(pair[1]), {}
    yield "zip", lambda: zip(authors(), numbers, strict=True), None, {}
    yield "chunks", lambda: [authors()[at : at + 3] for at in range(0, size, 3)], lambda chunk: chunk.clear(), {}
    yield "a growing list", lambda: [*numbers, *range(1000, 1000 + next(grown))], None, {}
    yield "a shuffle with a seed", lambda: random.Random(3).sample(numbers, size), None, {}
    yield "a sorted set", lambda: sorted({f"user {number}" for number in numbers}), None, {}
    yield "rows that were read again", lambda: [[number, [start]] for number in numbers], lambda row: row[1].pop(), {}
    yield "a generator", lambda: (number * start for number in numbers), None, {}
    yield "paths", lambda: sorted(Path("/in") / str(number) for number in numbers), None, {}
    yield "a range", lambda: range(start, start + 3 * size, 3), None, {}
    yield "batches of dicts", lambda: [{"a": number} for number in numbers], list.clear, {"batch": 4}
    yield "a mapping", lambda: {number: [start] for number in numbers}.items(), lambda pair: pair[1].clear(), {}
    yield "a header and rows", lambda: ["a,b", *({"a": number} for number in numbers)], clear_if_dict, {}


def changing_copy(item: Any) -> None:
    changing.copy_idiom(item, random.Random())


def clear_if_dict(item: Any) -> None:
    if isinstance(item, dict):
        item.clear()


@pytest.mark.parametrize("number", range(26))
def test_loops_that_are_right_raise_no_alarm(number: int) -> None:
    for seed in range(400):
        rng = random.Random(seed)
        name, make, spoil, options = list(everyday(rng))[number]
        executions = Executions()
        counts, expected = 0, None
        for _ in range(rng.randrange(1, 5)):
            found = executions.loop(make, rng.randrange(1, 5), spoil, **options)
            assert isinstance(found, list), f"{name}, seed {seed}: {found}"
            counts += len(found)
            if executions.snapshot.completed:
                break
        else:
            found = executions.loop(make, None, spoil, **options)
            assert isinstance(found, list), f"{name}, seed {seed}: {found}"
            counts += len(found)
        if name != "a growing list":
            expected = len(list(make()))
            assert counts == -(-expected // options.get("batch", 1)) or "batch" in options, f"{name}, seed {seed}"
        assert executions.snapshot.completed, f"{name}, seed {seed}"


def test_a_list_of_rows_that_are_gone_once_they_are_done() -> None:
    """Such as those of a query for what is not done yet."""
    executions = Executions()
    rows = [author(Row(number)) for number in (3, 5)]
    assert len(executions.loop(rows, 2)) == 2
    assert executions.loop([]) == []
    assert "loop" in executions.snapshot.completed


def test_the_page_after_the_last_one_that_was_done_is_gone() -> None:
    executions = Executions()
    fetch = {None: ([1, 2], 1), 1: ([3], None)}
    assert executions.loop(pages(fetch.__getitem__), 2) == [1, 2]
    assert executions.loop(pages({None: ([1, 2], None)}.__getitem__)) == []


# -- the errors


def rows_with(*ids: Any) -> list[dict[str, Any]]:
    return [{"id": one, "name": "ann"} for one in ids]


def without_advice(text: str) -> str:
    return text.partition("\n")[0]


@pytest.mark.parametrize(
    ("before", "now", "problem"),
    [
        (
            rows_with(7, 8, 9, 10),
            rows_with(7, 9, 10),
            "item 2 of this loop was done and has changed: then id 8, now id 9 (id 8 is not among them now; "
            "4 items then, 3 now)",
        ),
        (
            rows_with(7, 8, 9),
            rows_with(5, 7, 8, 9),
            "item 2 of this loop was done and has changed: then id 8, now id 7 (id 8 is item 3 now; 3 items "
            "then, 4 now)",
        ),
        (
            [10, 20, 30],
            [10, 30],
            "item 2 of this loop was done and has changed: then 20, now 30 (20 is not among them now; 3 items "
            "then, 2 now)",
        ),
        ([10, 20, 30], [10], "2 items of this loop were done, but it has 1 now"),
        (
            ["a", "b", "c"],
            ["b", "a", "c"],
            "item 2 of this loop was done and has changed (it is item 1 now; 3 items then, 3 now)",
        ),
        (
            range(0, 10, 2),
            range(1, 10, 2),
            "its range has another start or step than when 2 of its items were done, or was another source; it is "
            "range(1, 10, 2) now",
        ),
        (
            lambda: iter([1, 2, 3]),
            lambda: iter([1]),
            "2 items of this loop were done, but it has fewer than 2 now",
        ),
        (
            [author(Row(uid)) for uid in (4, 2, 3)],
            [author(Row(uid)) for uid in (4, 3)],
            "item 2 of this loop was done and has changed: then id 2, now id 3 (id 2 is not among them now; 3 "
            "items then, 2 now)",
        ),
        (
            [object(), object(), object(), object()],
            [object(), object(), object()],
            "it had 4 items when 2 of them were done, and has 3 now; its items have no identity that would show which "
            "ones are gone",
        ),
    ],
    ids=["one gone", "one more", "ints", "shorter", "texts", "range", "generator", "instances", "objects"],
)  # fmt: skip
def test_what_the_error_says(before: Any, now: Any, problem: str) -> None:
    assert without_advice(changed(before, 2, now)) == problem


def test_what_the_error_advises() -> None:
    executions = Executions()
    executions.loop(rows_with(1, 2, 3), 2)
    error = executions.loop(rows_with(1, 3))
    lines_of_error = str(error).split("\n")
    assert [re.sub(" +#", " #", line) for line in lines_of_error[1:]] == [
        "A loop by position needs the same items in each execution. Write one of",
        "    self.iterate('loop', Model.objects.filter(...)) # a queryset or a select: read by key",
        "    self.iterate('loop', keyed(rows, key='id')) # rows in ascending order of a unique key",
        "    self.iterate('loop', rows, identity=lambda row: row['sku']) # the same item with other values",
        "Then: celery -A proj continuations retry some-id --step loop (from its beginning), or retry some-id "
        "--accept-source (from its place in the source as it is now).",
    ]
    assert len({line.index("#") for line in lines_of_error if "#" in line}) == 1, "the comments are under each other"
    assert "self.iterate('loop', Author.objects.filter(...))" in changed(
        [author(Row(uid)) for uid in (4, 2, 3)], 2, [author(Row(uid)) for uid in (4, 3, 2)]
    )


def test_personal_data_is_not_in_the_error() -> None:
    text = changed([{"email": "ann@example.org"}, {"email": "bob@example.org"}], 1, [{"email": "bob@example.org"}])
    assert "example.org" not in text


def test_a_change_of_a_file_says_which_one(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("one\ntwo\nsix\n")
    executions = Executions()
    executions.loop(lines(path), 2)
    path.write_text("one\nsix\nten\n")
    assert str(path) in str(executions.loop(lines(path)))


def test_a_file_that_was_put_in_place_of_the_one_that_is_read(tmp_path: Path) -> None:
    """The mark is of the file that is open, not of the one to which its path leads at the checkpoint."""
    path, other = tmp_path / "rows", tmp_path / "other"
    rows = [f"{number:07}\n" for number in range(2000)]
    path.write_text("".join(rows))
    other.write_text("".join(rows[:1000] + rows[1001:]))
    executions, done = Executions(), []

    def body(task: Any) -> None:
        for line in task.iterate(lines(path)):
            done.append(line)
            if line == "0001100":
                other.replace(path)
                task.stop()

    executions.run(body)
    assert "was replaced: the bytes before byte" in str(executions.loop(lines(path)))


def test_files_that_are_removed_once_they_are_read(tmp_path: Path) -> None:
    """A batch may begin in one that is gone when its cursor is saved."""

    def inner(number: int) -> Any:
        path = rows_of(tmp_path / str(number), "one\ntwo\nsix\n")
        try:
            yield from (line for line, _ in lines(path).read(None))
        finally:
            path.unlink()

    def outer(remove: bool) -> Any:
        def rows(number: int) -> Any:
            if remove:
                (tmp_path / str(number - 1)).unlink(missing_ok=True)
            return lines(rows_of(tmp_path / str(number), "one\ntwo\nsix\n"))

        return nested([1, 2], rows)

    def fails(task: Any) -> None:
        for number, _ in enumerate(task.iterate(outer(True), batch=2), 1):
            if number == 2:
                raise ConnectionError

    executions = Executions()
    assert isinstance(executions.run(fails), ConnectionError)
    assert len(executions.loop(outer(False))) == 4
    assert len(Executions().loop(nested([1, 2], inner))) == 6


# -- identity


def test_identity_is_what_is_compared() -> None:
    def loop(executions: Executions, rows: Any, count: int | None = None) -> Any:
        return executions.loop(rows, count, identity=lambda row: row["sku"])

    executions = Executions()
    assert len(loop(executions, [{"id": 1, "sku": "a"}, {"id": 2, "sku": "b"}], 1)) == 1
    assert loop(executions, [{"id": 8, "sku": "a"}, {"id": 9, "sku": "b"}]) == [{"id": 9, "sku": "b"}]
    executions = Executions()
    loop(executions, [{"id": 1, "sku": "a"}, {"id": 2, "sku": "b"}], 1)
    error = loop(executions, [{"id": 1, "sku": "b"}, {"id": 2, "sku": "a"}])
    assert "then id a, now id b (id a is item 2 now" in str(error)


def test_identity_none_compares_nothing() -> None:
    executions = Executions()
    executions.loop([1, 2, 3], 2, identity=None)
    assert executions.loop([9, 8, 7], identity=None) == [7]
    assert executions.hosts[0].unchecked_loops == 0, "the caller knows it"


@pytest.mark.parametrize("wrong", [5, "sku", ()])
def test_an_identity_that_is_none(wrong: Any) -> None:
    error = Executions().loop([1], identity=wrong)
    assert str(error) == f"step 'loop' was given identity={wrong!r}; it takes a function of an item, or None"


def test_identity_is_for_loops_by_position() -> None:
    error = Executions().loop(keyed([{"id": 1}], key="id"), identity=lambda row: row["id"])
    assert str(error) == ("step 'loop' was given identity=, which is for loops by position; this loop is by key id")
    assert Executions().loop(keyed([{"id": 1}], key="id"), identity=None) == [{"id": 1}]


# -- what a body may do


def test_items_of_several_classes_are_told_apart() -> None:
    before = [1, {"name": "ann"}, "x", {"name": "bob", "tags": []}, [1], {"id": 3}]
    for place in range(1, len(before)):
        executions = Executions()
        executions.loop(before, place, clear_if_dict)
        now = [0, *before[: place - 1], *before[place:]]
        assert isinstance(executions.loop(now), SourceChangedError), place
        executions = Executions()
        executions.loop([1, {"name": "ann"}, "x", {"name": "bob", "tags": []}, [1], {"id": 3}], place, clear_if_dict)
        before = [1, {"name": "ann"}, "x", {"name": "bob", "tags": []}, [1], {"id": 3}]
        assert len(executions.loop(before)) == len(before) - place


def test_a_row_with_a_list_is_identified_by_its_other_values() -> None:
    def rows(*names: str) -> Any:
        return [{"name": name, "tags": None if name == "ann" else [name]} for name in names]

    def append(row: Any) -> None:
        if row["tags"] is not None:
            row["tags"].append("done")

    executions = Executions()
    executions.loop(rows("ann", "bob", "eve"), 2, append)
    assert len(executions.loop(rows("ann", "bob", "eve"), None, append)) == 1
    executions = Executions()
    executions.loop(rows("ann", "bob", "eve"), 2, append)
    assert isinstance(executions.loop(rows("ann", "eve", "joe"), None, append), SourceChangedError)


def test_a_body_that_shortens_its_list() -> None:
    executions, rows = Executions(), [1, 2, 3, 4]

    def body(task: Any) -> None:
        for item in task.iterate(rows):
            del rows[0]
            if item == 3:
                task.stop()

    executions.run(body)
    assert executions.snapshot.current is not None


def test_a_change_that_the_body_swallows_completes_nothing() -> None:
    def body(task: Any) -> None:
        try:
            for _ in task.iterate([1, 2]):
                pass
        except Exception:
            pass
        task.checkpoint()

    executions = Executions()
    executions.loop([7, 1, 2], 2)
    before = executions.snapshot
    assert isinstance(executions.run(body), SourceChangedError)
    found = executions.snapshot
    assert (found.completed, found.current, found.mark) == ({}, before.current, before.mark)


def test_a_misfit_that_the_body_swallows_completes_nothing() -> None:
    def body(task: Any) -> None:
        try:
            for _ in task.iterate(keyed(rows_with(1, 2, 3), key="id")):
                pass
        except Exception:
            pass
        task.checkpoint()

    executions = Executions()
    executions.loop([7, 1, 2], 2)
    before = executions.snapshot
    error = executions.run(body)
    assert isinstance(error, InvalidStepError)
    assert error.recorded
    assert (executions.snapshot.completed, executions.snapshot.current) == ({}, before.current)


class Unit:
    """Work that is committed with the cursor."""

    def begin(self) -> None:
        pass

    def rollback(self) -> None:
        pass


@pytest.mark.parametrize("rows", [rows_with(7, 8, 9, 10), [7, 8, 9, 10]], ids=["dicts", "ints"])
def test_after_a_commit_that_failed_the_item_before_it_is_compared(rows: Any) -> None:
    executions = Executions()

    def body(task: Any) -> None:
        run, host = task._run, task._host
        for number, _ in enumerate(run.declare(Iteration(run, "loop", opener("loop", rows), unit=Unit())), 1):
            run.committed()
            if number == 3:
                host.save = refuse

    def refuse(run: Any) -> None:
        raise ConnectionError

    assert isinstance(executions.run(body), ConnectionError)
    done = executions.snapshot.current
    assert done is not None
    assert executions.loop(rows) == rows[done[1] :]


# -- keys and pages


def test_rows_that_are_not_in_the_order_of_their_key() -> None:
    error = Executions().loop(keyed([{"id": 3}, {"id": 1}], key="id"))
    assert str(error) == (
        "rows are not in ascending order of a unique key: row 2 has 1 after 3 ({'id': 3} and {'id': 1}); sort them by "
        "this key, or pass a key that is unique"
    )
    assert "row 2 has 3 after 3" in str(Executions().loop(keyed([{"id": 3}, {"id": 3}], key="id")))


def test_rows_that_come_again_after_their_key() -> None:
    with_the_last_one = Executions().loop(keyed_pages(lambda last: [(last or 0,), ((last or 0) + 1,)], key=0))
    assert "has the key 1 of the previous row" in str(with_the_last_one)
    always_the_same = Executions().loop(keyed_pages(lambda last: [("a",), ("b",)], key=0))
    assert "the row ('b',) has the key 'b', after which rows were requested" in str(always_the_same)


def test_pages_by_key_that_come_in_no_order() -> None:
    def fetch(last: int | None) -> list[dict[str, int]]:
        return [{"id": key} for key in (5, 2, 7, 1) if key != last]

    found = Executions().loop(keyed_pages(fetch, key="id"))
    assert "the row {'id': 7} has the key 7 after 2, against the order of the previous rows" in str(found)


def test_pages_by_key_whose_order_has_changed() -> None:
    def ascending(last: int | None) -> list[int]:
        return [number for number in range(1, 9) if number > (last or 0)][:2]

    def descending(last: int | None) -> list[int]:
        return [number for number in range(8, 0, -1) if number < (last or 9)][:2]

    executions = Executions()
    assert executions.loop(keyed_pages(ascending, key=lambda row: row), 3) == [1, 2, 3]
    found = executions.loop(keyed_pages(descending, key=lambda row: row))
    assert "has the key 1 after 2" in str(found) or "against the order" in str(found)


def test_a_csv_file_that_was_emptied(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id\n" + "".join(f"{number}\n" for number in range(8)))
    executions = Executions()
    assert len(executions.loop(csv_rows(path), 3)) == 3
    path.write_text("")
    assert "was truncated: it is empty" in str(executions.loop(csv_rows(path)))


def test_what_comes_after_a_long_text_counts() -> None:
    mails = [{"body": "x" * 5000, "to": name} for name in ("ann", "bob", "cyd", "dan", "eve")]
    executions = Executions()
    assert len(executions.loop(mails, 3)) == 3
    assert "was done and has changed" in str(executions.loop(mails[1:]))


def test_items_after_some_that_have_no_fingerprint() -> None:
    class Row:
        def __init__(self, ident: int | None) -> None:
            self.id = ident

    executions = Executions()
    assert len(executions.loop([Row(ident) for ident in (None, None, 1, 2, 3, 4)], 4)) == 4
    assert "was done and has changed" in str(executions.loop([Row(ident) for ident in (None, None, 2, 3, 4, 5)]))


@pytest.mark.parametrize("change", ["replaced", "sorted"])
def test_a_body_that_writes_into_the_list_it_loops_over(change: str) -> None:
    """Only what the source gave counts: it is given again in the next execution."""

    def names() -> list[str]:
        return ["b", "c", "a", "d", "e"]

    executions = Executions()
    rows = names()
    run_of_three = executions.loop(rows, 3, lambda item: _write_into(rows, item, change))
    assert len(run_of_three) == 3
    assert executions.loop(names()) == ["d", "e"]


def _write_into(rows: list[str], item: str, change: str) -> None:
    if change == "replaced":
        rows[rows.index(item)] = item.upper()
    elif item == "a":
        rows.sort()


def test_pairs_whose_second_part_the_body_changes() -> None:
    def pairs() -> list[Any]:
        return [("a", None), ("b", None), ("c", {"x": 1}), ("d", {"x": 1})]

    def mark(pair: Any) -> None:
        if pair[1] is not None:
            pair[1]["seen"] = True

    executions = Executions()
    assert len(executions.loop(pairs(), 3, mark)) == 3
    assert executions.loop(pairs()) == [("d", {"x": 1})]


def test_tokens_that_cannot_be_hashed() -> None:
    fetch = {"": ([1, 2], {"after": {"N": "2"}}), "2": ([3], None)}
    executions = Executions()
    source = pages(lambda token: fetch["" if token is None else token["after"]["N"]])
    assert executions.loop(source, 2) == [1, 2]
    assert executions.loop(source) == [3]


def test_pages_that_have_become_larger() -> None:
    """Of a number as token: what has come to the page that was done would be left out."""

    def by(size: int) -> Any:
        def page(number: int | None) -> Any:
            start = (number or 0) * size
            return list(range(100))[start : start + size], (number or 0) + 1 if start + size < 100 else None

        return pages(page)

    executions = Executions()
    assert len(executions.loop(by(10), 10)) == 10
    assert "page None had 10 items and has 20 now" in str(executions.loop(by(20)))


# -- what is within others


def test_what_was_made_with_positions_is_compared_too() -> None:
    executions = Executions()
    executions.loop(positions.Positions([1, 2, 3]), 2)
    assert isinstance(executions.loop(positions.Positions([1, 3])), SourceChangedError)
    executions = Executions()
    executions.loop(nested([1, 2], lambda one: [5, 6]), 3)
    assert "the outer item at its place has changed: then 2, now 3" in str(
        executions.loop(nested([1, 3], lambda one: [5, 6]))
    )


def test_an_outer_item_by_key_that_is_gone_does_no_harm() -> None:
    def source(*keys: int) -> Any:
        return nested(keyed(rows_with(*keys), key="id"), lambda row: [f"{row['id']}a", f"{row['id']}b"])

    executions = Executions()
    assert len(executions.loop(source(1, 2, 3), 3)) == 3
    assert [two for _, two in executions.loop(source(3, 4))] == ["3a", "3b", "4a", "4b"]
    executions = Executions()
    executions.loop(source(1, 2, 3), 3)
    assert [two for _, two in executions.loop(source(0, 2, 5))] == ["2b", "5a", "5b"]


@pytest.mark.parametrize("outer", [[1, 2, 3], [1, 5, 3], [1], []])
@pytest.mark.parametrize("inner", [[7, 8, 9], [7, 0, 9], [7, 9], []])
def test_within_others_an_accepted_source_is_read_from_its_place(outer: list[int], inner: list[int]) -> None:
    executions = Executions()
    executions.loop(nested([1, 2, 3], lambda one: [7, 8, 9]), 5)
    snapshot = executions.snapshot
    snapshot.mark = ACCEPTED
    executions.text = snapshot.dumps()
    expected = [(one, two) for one in outer for two in inner]
    within = [(outer[1], two) for two in inner[2:]] if len(outer) > 1 else []
    assert executions.loop(nested(outer, lambda one: inner)) == within + expected[2 * len(inner) :]


# -- kinds


def rows_of(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (lambda task, path: [7, 8, 9], lambda task, path: DjangoTable("int").rows.all()),
        (
            lambda task, path: DjangoTable("int").rows.order_by("-pk"),
            lambda task, path: DjangoTable("int").rows.order_by("pk"),
        ),
        (lambda task, path: range(3), lambda task, path: range(1, 4)),
        (
            lambda task, path: csv_rows(rows_of(path, "a\n1\n2\n3\n")),
            lambda task, path: json_lines(rows_of(path, "1\n2\n3\n")),
        ),
        (
            lambda task, path: keyed([{"id": 1, "no": 5}, {"id": 2, "no": 6}], key="id"),
            lambda task, path: keyed([{"id": 1, "no": 5}, {"id": 2, "no": 6}], key="no"),
        ),
        (lambda task, path: [7, 8, 9], lambda task, path: keyed(rows_with(7, 8, 9), key="id")),
        (lambda task, path: [7, 8, 9], lambda task, path: pages(lambda token: ([7, 8, 9], None))),
        (lambda task, path: [7, 8, 9], lambda task, path: nested([7, 8, 9], lambda one: [1])),
        (
            lambda task, path: nested([7, 8, 9], lambda one: [1]),
            lambda task, path: nested(keyed(rows_with(7, 8, 9), key="id"), lambda one: [1]),
        ),
    ],
    ids=[
        "list -> queryset", "descending -> ascending", "another range", "csv -> json lines", "another key",
        "list -> keyed", "list -> pages", "list -> nested", "outer list -> keyed",
    ],
)  # fmt: skip
def test_a_loop_over_something_else_is_detected(before: Any, now: Any, tmp_path: Path) -> None:
    table = DjangoTable("int")
    table.clear()
    table.insert([1, 2, 3])
    executions, path = Executions(), tmp_path / "rows"
    executions.loop(before(None, path), 2)
    error = executions.loop(now(None, path))
    assert isinstance(error, SourceChangedError) or (isinstance(error, InvalidStepError) and error.recorded), error
    assert "loop" not in executions.snapshot.completed


STEPS: dict[str, Callable[[Any], Any]] = {
    "call": lambda task: task.step("it", int),
    "block": lambda task: [task.stop() for step in task.step("it", start=1) for _ in [step.advance()]],
    "loop": lambda task: list(task.iterate([1, 2], name="it")),
}


@pytest.mark.parametrize(("before", "now"), [(one, two) for one in STEPS for two in STEPS if one != two])
def test_a_step_that_has_become_another_kind_of_step(before: str, now: str) -> None:
    executions = Executions()

    def first(task: Any) -> None:
        STEPS[before](task)
        for _ in task.iterate([1, 2], name="then"):
            task.stop()

    executions.run(first)
    error = executions.run(STEPS[now])
    if before == "block":
        executions.run(first)
        error = executions.run(STEPS[now])
    assert isinstance(error, InvalidStepError)
    assert error.recorded
    assert f"step 'it' is a {now} here, but was a {before} in an earlier execution" in str(error)


def test_a_loop_that_has_become_a_call_while_it_was_current() -> None:
    executions = Executions()
    executions.loop([1, 2, 3], 2, name="it")
    assert "step 'it' is a call here" in str(executions.run(STEPS["call"]))


def test_a_sleep_that_has_become_a_wait(worker: Any, task: Any, later: Any) -> None:
    def body(self: Any) -> Any:
        return wait(self)

    wait: Any = lambda self: self.sleep("it", 1000)  # noqa: E731
    result = task(body, continuation_change_grace=0).delay()
    worker.deliver()
    assert result.state == states.RETRY
    wait = lambda self: self.wait_for("it")  # noqa: E731
    later(1001)
    worker.drain()
    assert result.state == states.FAILURE
    assert "step 'it' is a wait_for here, but was a sleep in an earlier execution" in str(result.result)


def test_positions_of_version_0_1_are_read() -> None:
    executions = Executions()
    executions.text = '{"version":1,"current":["loop",2],"resumptions":1}'
    assert executions.loop([7, 8, 9]) == [9]
    executions.text = '{"version":1,"current":["loop",2],"resumptions":1}'
    assert isinstance(executions.loop([7]), SourceChangedError)
    executions.text = '{"version":1,"current":["loop",2],"resumptions":1}'
    assert len(executions.loop([author(Row(uid)) for uid in (7, 8, 9)])) == 1


# -- in a worker


@pytest.fixture
def loop(worker: Any, task: Any) -> Any:
    """A task with a loop over ``made.rows``, which stops after two items and finds one gone."""

    def make(**options: Any) -> Any:
        catches = options.pop("catches", False)
        made = SimpleNamespace(rows=[1, 2, 3, 4], done=[])

        def body(self: Any) -> str:
            try:
                for item in self.iterate("loop", list(made.rows)):
                    made.done.append(item)
                    if made.done == [1, 2]:
                        worker.stop()
            except Exception:
                if not catches:
                    raise
            return "end"

        made.task = task(body, **options)
        made.result = made.task.delay()
        worker.deliver()
        made.rows = [1, 3, 4]
        return made

    return make


@pytest.mark.parametrize("options", [{}, {"catches": True}, {"autoretry_for": (Exception,), "default_retry_delay": 0}])
def test_a_change_fails_the_task_and_keeps_its_record(worker: Any, loop: Any, record: Any, options: Any) -> None:
    made = loop(**options)
    retries = []
    worker.drain()
    retries = [delivery.headers["retries"] for delivery in worker.deliveries]
    assert made.result.state == states.FAILURE
    assert type(made.result.result).__name__ == "SourceChangedError"
    assert made.done == [1, 2]
    assert set(retries) == {0}
    assert len(worker.deliveries) == 2
    found = record(made.result.id)
    assert found.fence.status == Status.FAILED
    assert (Snapshot.loads(found.snapshot).current, Snapshot.loads(found.snapshot).completed) == (("loop", 2), {})


@pytest.mark.parametrize("options", [{}, {"catches": True}])
def test_an_operator_accepts_the_source_as_it_is(worker: Any, loop: Any, options: Any) -> None:
    made = loop(**options)
    worker.drain()
    made.result.retry(accept_source=True)
    worker.drain()
    assert (made.result.get(), made.done) == ("end", [1, 2, 4])


def test_an_operator_begins_the_step_again(worker: Any, loop: Any) -> None:
    made = loop()
    worker.drain()
    made.result.retry("loop")
    worker.drain()
    assert (made.result.get(), made.done) == ("end", [1, 2, 1, 3, 4])


def test_a_retry_alone_finds_the_change_again(worker: Any, loop: Any) -> None:
    made = loop(catches=True)
    worker.drain()
    made.result.retry()
    worker.drain()
    assert (made.result.state, made.done) == (states.FAILURE, [1, 2])


def test_that_items_cannot_be_told_apart_is_logged_once(worker: Any, task: Any, caplog: Any) -> None:
    def body(self: Any) -> None:
        for _ in self.iterate("loop", [object(), object(), object()]):
            worker.stop()

    caplog.set_level(logging.INFO, "celery_continuations")
    made = task(body)
    for _ in range(2):
        made.delay()
    worker.drain()
    found = [one for one in caplog.records if getattr(one, "action", "") == "source_unchecked"]
    assert len(found) == 1
    assert "pass iterate identity=" in found[0].getMessage()


# -- how much is done


def pairs_of_progress(make: Callable[[], Any], total: Any = None, batch: Any = None) -> list[Any]:
    """Stop after each item, and return what is done and what there is in all."""
    executions, found = Executions(), []
    while not executions.snapshot.completed:
        executions.loop(make, 1, total=total, batch=batch)
        if executions.snapshot.current is not None:
            found.append(tuple(executions.snapshot.progress))
    return found


@pytest.mark.parametrize("source", ["queryset", "iterator", "select", "keyed", "pages", "keyed_pages"])
def test_what_is_done_is_counted_over_all_executions(source: str) -> None:
    table = DjangoTable("int")
    table.clear()
    table.insert([10, 20, 30])
    rows = [{"id": 1}, {"id": 5}, {"id": 9}]
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    with orm.Session(engine) as session:
        other = SQLAlchemyTable("int", session)
        other.insert([10, 20, 30])
        make: Any = {
            "queryset": lambda: table.rows.all(),
            "iterator": lambda: table.rows.order_by("pk").iterator(),
            "select": lambda: select_rows(session, sa.select(other.entity)),
            "keyed": lambda: keyed(rows, key="id"),
            "pages": lambda: pages({None: (rows[:2], "next"), "next": (rows[2:], None)}.__getitem__),
            "keyed_pages": lambda: keyed_pages(lambda last: [row for row in rows if row["id"] > (last or 0)], key="id"),
        }[source]
        total = 3 if source == "keyed" else None
        assert pairs_of_progress(make) == [(1, total), (2, total), (3, total)]
        assert pairs_of_progress(make, batch=2) == [(2, total), (3, total)]
        assert pairs_of_progress(make, total=3) == [(1, 3), (2, 3), (3, 3)]


def test_bytes_of_a_file_are_counted(tmp_path: Path) -> None:
    path = rows_of(tmp_path / "rows", "a\n1\n2\n")
    assert pairs_of_progress(lambda: csv_rows(path)) == [(4, 6), (6, 6)]


def test_a_total_is_counted_once() -> None:
    table = DjangoTable("int")
    table.clear()
    table.insert([10, 20, 30])
    with CaptureQueriesContext(connections["default"]) as queries:
        assert pairs_of_progress(lambda: table.rows.all(), total="count") == [(1, 3), (2, 3), (3, 3)]
    assert sum("COUNT(" in query["sql"] for query in queries.captured_queries) == 1


@pytest.mark.parametrize(
    "source", [lambda: iter([1]), lambda: keyed(iter([1]), key=int), lambda: pages(lambda token: ([1], None))]
)
def test_what_cannot_be_counted_is_refused(source: Any) -> None:
    error = Executions().loop(source, total="count")
    assert isinstance(error, InvalidStepError)
    assert "write total= with" in str(error)


def test_what_was_done_after_a_save_counts_once() -> None:
    """After a kill the task resumes from the last save, with the progress of that time."""
    executions, saved = Executions(), []

    def body(task: Any) -> None:
        for number, _ in enumerate(task.iterate(keyed(rows_with(1, 2, 3, 4), key="id")), 1):
            if number == 2:
                task._host.on_save = lambda run: saved.append(run.take_snapshot().dumps())
                task._host.wish, task._run.attention = "save", True
            if number == 3:
                raise changing.Killed

    with pytest.raises(changing.Killed):
        executions.run(body)
    executions.text = saved[-1]
    assert executions.snapshot.progress == (2, 4)
    executions.loop(keyed(rows_with(1, 2, 3, 4), key="id"), 1)
    assert executions.snapshot.progress == (3, 4)
