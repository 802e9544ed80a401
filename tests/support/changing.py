"""Loops over sources that change between executions: a world of rows, a worker that stops or dies, and a judge.

A case is a kind of source and a seed.  From the seed come rows, the places where the worker saves, stops or is killed,
what the body does to its items, and how the rows change before the next execution.  The judge knows only the rows: from
them it decides which changes a loop must notice, and it counts how often each row was done.
"""

from __future__ import annotations

import copy
import json
import random
import re
import sqlite3
import traceback
from collections import Counter, namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from celery_continuations.core.iteration import Iteration
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.core.step import Step
from celery_continuations.exceptions import Interrupt, InvalidStepError, SourceChangedError
from celery_continuations.sources import (
    csv_rows,
    json_lines,
    keyed,
    keyed_pages,
    keys,
    lines,
    nested,
    opener,
    pages,
    throttled,
)
from celery_continuations.sources.base import AUTO

# -- a worker


class Killed(BaseException):
    """The process is killed here."""


class Host:
    """A host that saves or stops a run where the body has asked for it."""

    def __init__(self) -> None:
        self.wish: str | None = None
        self.on_save: Callable[[Run], None] = lambda run: None
        self.unchecked_loops = 0

    def guard(self, step: str | None, own: Any) -> None:
        pass

    def attend(self, run: Run) -> str | None:
        wish, self.wish = self.wish, None
        if wish == "save":
            self.on_save(run)
        return "stop" if wish == "stop" else None

    def is_due(self, run: Run) -> bool:
        return self.wish is not None

    def many_steps(self, run: Run, step: Any, number: int) -> None:
        pass

    def save(self, run: Run) -> None:
        pass

    def join(self, run: Run) -> None:
        pass

    def notify(self, event: str, run: Run, step: Any, **data: Any) -> None:
        pass

    def back_off(self, run: Run, seconds: float) -> NoReturn:
        run.interrupt("throttled")

    def is_of_item(self, run: Run, step: Any, error: Exception) -> bool:
        return False

    def unchecked(self, run: Run, step: Any) -> None:
        self.unchecked_loops += 1


# -- a world


@dataclass
class Row:
    """A row: its key, its changeable part, and nested rows."""

    uid: int
    value: int = 0
    inner: list[Row] = field(default_factory=list)


CHANGES = (
    "insert", "insert", "delete", "delete", "update", "swap", "shuffle", "rotate", "reverse", "truncate", "grow",
    "replace", "move", "balanced",
)  # fmt: skip


class World:
    """Makes rows, and changes them."""

    def __init__(self, rng: random.Random, depth: int, sizes: Sequence[int]) -> None:
        self.rng = rng
        self.depth = depth
        self.used: set[int] = set()
        self.rows = [self.row() for _ in range(rng.choice(sizes))]

    def row(self, level: int = 1) -> Row:
        uid = self.rng.randrange(10**6)
        while uid in self.used:
            uid = self.rng.randrange(10**6)
        self.used.add(uid)
        rows = [self.row(level + 1) for _ in range(self.rng.randrange(4))] if level < self.depth else []
        return Row(uid, self.rng.randrange(3), rows)

    def change(self, place: int | None) -> None:
        """Change some rows, often near a place."""
        self.place = place
        rows = copy.deepcopy(self.rows)
        for _ in range(self.rng.choice([0, 1, 1, 1, 2, 3])):
            targets = [(rows, 1)]
            if self.depth > 1:
                targets += [(row.inner, 2) for row in rows]
            self.change_one(*self.rng.choice(targets))
        self.rows = rows

    def index(self, size: int, level: int) -> int:
        if self.place is not None and level == 1 and self.rng.random() < 0.6:
            return min(max(self.place + self.rng.randrange(-3, 4), 0), size - 1)
        return self.rng.randrange(size)

    def change_one(self, rows: list[Row], level: int) -> None:
        rng, size = self.rng, len(rows)
        one, two = (self.index(size, level), self.index(size, level)) if size else (0, 0)
        kind = rng.choice(CHANGES)
        if kind == "insert" or not size:
            rows.insert(self.index(size + 1, level), self.row(level))
        elif kind == "grow":
            rows += [self.row(level) for _ in range(rng.randrange(1, 4))]
        elif kind == "delete":
            del rows[one]
        elif kind == "update":
            rows[one].value += 1 + rng.randrange(3)
        elif kind == "swap":
            rows[one], rows[two] = rows[two], rows[one]
        elif kind == "move":
            rows.insert(two, rows.pop(one))
        elif kind == "balanced":  # as many are inserted as are deleted
            del rows[one]
            rows.insert(two, self.row(level))
        elif kind == "shuffle":
            rng.shuffle(rows)
        elif kind == "rotate":
            rows[:] = rows[one:] + rows[:one]
        elif kind == "reverse":
            rows.reverse()
        elif kind == "truncate":
            del rows[one:]
        else:
            rows[:] = [self.row(level) for _ in range(rng.randrange(size + 2))]


# -- the judge's decision on a change


@dataclass(frozen=True)
class Verdict:
    """The required behaviour of a resumption.

    Attributes:
        must: ``"raise"``, ``"go on"``, or ``"either"`` if the source may compare more than the judge demands.
        may_miss: the change cannot be noticed: rows that were not done may now lie before its place, or rows that were
            done after it.
    """

    must: str = "go on"
    may_miss: bool = False

    def __and__(self, other: Verdict) -> Verdict:
        ranks = ["go on", "either", "raise"]
        return Verdict(max(self.must, other.must, key=ranks.index), self.may_miss or other.may_miss)


GO_ON, RAISE = Verdict(), Verdict("raise")


def crossed(before: Sequence[Row], now: Sequence[Row], done_before: int, done_now: int) -> bool:
    """Whether a row present both times has crossed the place."""
    known = {row.uid for row in before} & {row.uid for row in now}
    done = {row.uid for row in before[:done_before]} & known
    return done != {row.uid for row in now[:done_now]} & known


# -- kinds of sources


class Kind:
    """A kind of source, made of rows.

    Attributes:
        name: for messages.
        depth: levels of rows.
        sizes: how many rows there may be at the start.
        identity: as in ``iterate``.
    """

    depth = 1
    sizes: Sequence[int] = (1, 2, 3, 5, 8, 13)
    identity: Any = AUTO

    def __init__(self, name: str) -> None:
        self.name = name

    def order(self, rows: list[Row]) -> list[Row]:
        """Return the rows in the source's order."""
        return rows

    def begin(self, rows: list[Row]) -> None:
        """Begin a run, or its loop again, with these rows."""

    def source(self, rows: list[Row]) -> Any:
        raise NotImplementedError

    def uids(self, item: Any) -> Any:
        """Return the uid of an item, or the uids of each level."""
        raise NotImplementedError

    def spoil(self, item: Any, rng: random.Random) -> None:
        """Change an item in place, as a loop's body may."""

    def verdict(self, before: list[Row], now: list[Row], last: int) -> Verdict:
        """Judge a change; ``last`` is the uid of the last row that was done and saved."""
        raise NotImplementedError

    def reached(self, cursor: Any, last: Any, current: Any) -> Any:
        """Return the uid before the place of a cursor.

        ``last`` is that of the last item done, ``current`` that of the item in the loop's body; each may be None.
        """
        return last

    def clean(self) -> None:
        """Clean up after a case."""

    def allowed(self, error: Exception, rows: list[Row]) -> bool:
        """Whether an error is expected that is not about a change."""
        return False


def place_of(rows: list[Row], uid: int) -> int:
    return next(number for number, row in enumerate(rows) if row.uid == uid)


class ByPosition(Kind):
    """Items at positions.

    Args:
        name: for messages.
        item: makes an item of a row; the index is given too.
        uid: of an item.
        face: what identifies an item; None if nothing does.
        spoil: changes an item in place.
        wrap: makes a source of the items.
        identity: as in ``iterate``.
        has_length: whether the source has one.
    """

    def __init__(
        self,
        name: str,
        item: Callable[[Row, int], Any] = lambda row, index: row.uid,
        uid: Callable[[Any], int] = lambda item: item,
        face: Callable[[Row, int], Any] | None = lambda row, index: row.uid,
        spoil: Callable[[Any, random.Random], None] | None = None,
        wrap: Callable[[list[Any]], Any] = list,
        identity: Any = AUTO,
        has_length: bool = True,
    ) -> None:
        super().__init__(name)
        self.item, self.uids, self.face, self.wrap = item, uid, face, wrap  # type: ignore[method-assign]
        self.identity, self.has_length = identity, has_length
        if spoil is not None:
            self.spoil = spoil  # type: ignore[method-assign]

    def source(self, rows: list[Row]) -> Any:
        return self.wrap([self.item(row, index) for index, row in enumerate(rows)])

    def verdict(self, before: list[Row], now: list[Row], last: int) -> Verdict:
        done = place_of(before, last) + 1
        if done > len(now):
            return RAISE
        if self.face is None:
            if self.has_length and len(now) < len(before):
                return RAISE
        elif self.face(before[done - 1], done - 1) != self.face(now[done - 1], done - 1):
            return RAISE
        return Verdict("go on", crossed(before, now, done, done))


class InKeyOrder(ByPosition):
    """Model instances: by key if the first execution finds them in key order, otherwise by position."""

    def __init__(self, name: str, make: Callable[[Row], Any], order: str) -> None:
        super().__init__(name, lambda row, index: make(row), lambda item: item.pk, spoil=copy_idiom)
        self._order = order
        self.by_key = False

    def order(self, rows: list[Row]) -> list[Row]:
        if self._order == "any":
            return rows
        return sorted(rows, key=lambda row: row.uid, reverse=self._order == "reverse")

    def begin(self, rows: list[Row]) -> None:
        keys = [row.uid for row in rows]
        self.by_key = keys in (sorted(keys), sorted(keys, reverse=True)) and bool(keys)

    def verdict(self, before: list[Row], now: list[Row], last: int) -> Verdict:
        return GO_ON if self.by_key else super().verdict(before, now, last)


class ByKey(Kind):
    """Rows in the order of their key: no change matters."""

    def __init__(
        self,
        name: str,
        make: Callable[[list[Row]], Any],
        uid: Callable[[Any], int],
        spoil: Callable[[Any, random.Random], None] | None = None,
        descending: bool = False,
    ) -> None:
        super().__init__(name)
        self.source, self.uids, self._descending = make, uid, descending  # type: ignore[method-assign]
        if spoil is not None:
            self.spoil = spoil  # type: ignore[method-assign]

    def order(self, rows: list[Row]) -> list[Row]:
        return sorted(rows, key=lambda row: row.uid, reverse=self._descending)

    def verdict(self, before: list[Row], now: list[Row], last: int) -> Verdict:
        return GO_ON


class Unsorted(ByKey):
    """Rows given to keyed() in an order that may differ from that of their key."""

    def order(self, rows: list[Row]) -> list[Row]:
        return rows

    def verdict(self, before: list[Row], now: list[Row], last: int) -> Verdict:
        # Disorder among unread rows is noticed later, unless it is corrected by then.
        return Verdict("go on", before != super().order(before))

    def allowed(self, error: Exception, rows: list[Row]) -> bool:
        found = [row.uid for row in rows]
        text = str(error)
        is_named = any(f"has {two!r} after {one!r}" in text for one, two in pairwise(found))
        return found != sorted(found) and "are not in ascending order of a unique key" in text and is_named


class InPages(Kind):
    """An API with pages of three rows, whose token is a page, an offset, an address with one, or a key."""

    size = 3

    def __init__(self, name: str, token: str) -> None:
        super().__init__(name)
        self.token = token
        self.served: dict[int, tuple[int, bool]] = {}  # the key before the page of a row; whether it is its last one

    def order(self, rows: list[Row]) -> list[Row]:
        return sorted(rows, key=lambda row: row.uid) if self.token == "key" else rows

    def source(self, rows: list[Row]) -> Any:
        return pages(lambda token: self.page(rows, token))

    def page(self, rows: list[Row], token: Any) -> tuple[list[Any], Any]:
        if self.token == "key":
            rest = [row for row in rows if token is None or row.uid > token["after"]["N"]]
            found = rest[: self.size]
            key = -1 if token is None else token["after"]["N"]
            for row in found:
                self.served[row.uid] = key, row is found[-1] and len(rest) > self.size
            return [self.item(row) for row in found], {"after": {"N": found[-1].uid}} if len(rest) > self.size else None
        if token is None:
            start = 0
        elif self.token == "page":
            start = token * self.size
        else:
            start = int(token.rpartition("=")[2]) if self.token == "address" else token
        following: Any = start + self.size
        if following >= len(rows):
            following = None
        elif self.token == "page":
            following //= self.size
        elif self.token == "address":
            following = f"https://api.example/rows?offset={following}"
        return [self.item(row) for row in rows[start : start + self.size]], following

    def item(self, row: Row) -> Any:
        return {"id": row.uid, "value": row.value}

    def uids(self, item: Any) -> Any:
        return item["id"]

    def spoil(self, item: Any, rng: random.Random) -> None:
        item.pop("id")

    def verdict(self, before: list[Row], now: list[Row], last: int) -> Verdict:
        if self.token == "key":
            key, is_last = self.served[last]
            if is_last:
                return GO_ON  # between two pages a key finds its place
            before, now = ([row for row in rows if row.uid > key] for rows in (before, now))
        done = place_of(before, last) + 1
        if done > len(now) or before[done - 1].uid != now[done - 1].uid:
            return RAISE
        return Verdict("go on", crossed(before, now, done, done))


HEAD, NEAR = 4096, 256


class InFile(Kind):
    """Lines of a file, of equal width, that differ in their last bytes."""

    sizes = (2, 8, 13, 40)

    def __init__(self, name: str, form: str, width: int, folder: Path) -> None:
        super().__init__(name)
        self.form, self.width = form, width
        self.folder = folder
        self.paths: list[Path] = []
        self.first = b""

    def text(self, row: Row) -> str:
        if self.form == "json":
            text = json.dumps({"uid": f"{row.uid:07}", "value": row.value % 10})
        else:
            text = f"{row.uid:07},{row.value % 10}"
        return text.rjust(self.width - 1) + "\n"

    def content(self, rows: list[Row], count: int | None = None) -> bytes:
        title = "uid,value\n" if self.form == "csv" else ""
        return (title + "".join(map(self.text, rows[:count]))).encode()

    def begin(self, rows: list[Row]) -> None:
        self.first = self.content(rows)[:HEAD]

    def source(self, rows: list[Row]) -> Any:
        path = self.folder / f"{self.form} {self.width} {len(self.paths)}"
        self.paths.append(path)
        path.write_bytes(self.content(rows))
        return {"csv": csv_rows, "json": json_lines, "lines": lines}[self.form](path)

    def uids(self, item: Any) -> Any:
        return int(item.split(",")[0]) if self.form == "lines" else int(item["uid"])

    def spoil(self, item: Any, rng: random.Random) -> None:
        if self.form != "lines":
            item.pop("uid")

    def verdict(self, before: list[Row], now: list[Row], last: int) -> Verdict:
        done = place_of(before, last) + 1
        end = len(self.content(before, done))
        old, new = self.content(before), self.content(now)
        if len(new) < end or old[max(end - NEAR, 0) : end] != new[max(end - NEAR, 0) : end]:
            return RAISE
        is_same = old[:end] == new[:end] and new.startswith(self.first or old[:HEAD])
        return Verdict("go on" if is_same else "either", crossed(before, now, done, done))

    def clean(self) -> None:
        while self.paths:
            self.paths.pop().unlink()


class Within(Kind):
    """Nested rows."""

    depth = 2

    def __init__(self, name: str, outer: Kind, inner: Kind) -> None:
        super().__init__(name)
        self.outer, self.inner = outer, inner
        self.opened: list[Any] = []  # the uids of the outer items that the current execution has opened

    def order(self, rows: list[Row]) -> list[Row]:
        return [replace(row, inner=self.inner.order(row.inner)) for row in self.outer.order(rows)]

    def begin(self, rows: list[Row]) -> None:
        self.outer.begin(rows)

    def source(self, rows: list[Row]) -> Any:
        known = {row.uid: row.inner for row in rows}
        self.opened = []

        def inner(item: Any) -> Any:
            self.opened.append(self.outer.uids(item))
            return self.inner.source(known[self.opened[-1]])

        return nested(self.outer.source(rows), inner)

    def uids(self, item: Any) -> Any:
        return self.outer.uids(item[0]), self.inner.uids(item[1])

    def reached(self, cursor: Any, last: Any, current: Any) -> Any:
        if type(cursor) is tuple and cursor[1] is not None and cursor[2] is None:
            opened = self.opened[-1:] if current is None else [current[0]]
            return (opened[0], None) if opened else None
        if type(cursor) is not tuple or cursor[1] is not None:
            return last
        done = self.opened if current is None else self.opened[: self.opened.index(current[0])]
        return (done[-1], None) if done else None

    def spoil(self, item: Any, rng: random.Random) -> None:
        self.inner.spoil(item[1], rng)

    def verdict(self, before: list[Row], now: list[Row], last: Any) -> Verdict:
        outer, inner = last
        was = before[place_of(before, outer)]
        if isinstance(self.outer, ByKey) or getattr(self.outer, "by_key", False):
            found = next((row for row in now if row.uid == outer), None)
            return GO_ON if found is None or inner is None else self.inner.verdict(was.inner, found.inner, inner)
        verdict = self.outer.verdict(before, now, outer)
        if verdict.must == "raise":
            return verdict
        if inner is None:
            return verdict
        at = now[place_of(before, outer)]
        verdict &= Verdict("go on", crossed(before, now, place_of(before, outer), place_of(before, outer)))
        if at.uid != outer:
            return verdict & Verdict("either", True)
        return verdict & self.inner.verdict(was.inner, at.inner, inner)

    def clean(self) -> None:
        self.outer.clean()
        self.inner.clean()


# -- items


Pair = namedtuple("Pair", "uid value")


@dataclass
class Record:
    uid: int
    value: int


class Thing:
    """An item without an identity."""

    def __init__(self, uid: int) -> None:
        self.number = uid


class Letters(Sequence[Any]):
    """A user-defined sequence."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]


def copy_idiom(item: Any, rng: random.Random) -> None:
    """Copy a row as Django's documentation suggests."""
    item.pk = None
    item._state.adding = True


def spoil_dict(item: Any, rng: random.Random) -> None:
    rng.choice([item.clear, lambda: item.update(value=99), lambda: item.pop(next(iter(item)))])()


def spoil_nested(item: Any, rng: random.Random) -> None:
    item["deep"]["tags"].append(1)
    item["deep"].pop("value")


def spoil_optional(item: Any, rng: random.Random) -> None:
    if item["tags"] is not None:
        item["tags"].append(rng.random())
    item.update(value=99)


def set_value(item: Any, rng: random.Random) -> None:
    item.value = rng.random()


def append(item: Any, rng: random.Random) -> None:
    item.append(rng.random())


def mixed(row: Row, index: int) -> Any:
    made: list[Any] = [row.uid, {"uid": row.uid}, {"id": row.uid, "deep": [1]}, [row.uid, "a"]]
    return made[row.uid % 4]


def uid_of_mixed(item: Any) -> int:
    if isinstance(item, dict):
        return int(item["uid"] if "uid" in item else item["id"])
    return int(item[0] if isinstance(item, list) else item)


def in_table(rows: list[Row]) -> Any:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, value INTEGER)")
    connection.executemany("INSERT INTO rows VALUES (?, ?)", [(row.uid, row.value) for row in rows])

    def after(last: int | None) -> list[Any]:
        query = "SELECT id, value FROM rows WHERE id > ? ORDER BY id LIMIT 3"
        return connection.execute(query, (-1 if last is None else last,)).fetchall()

    return keyed_pages(after, key=0)


def dicts(rows: list[Row]) -> list[dict[str, int]]:
    return [{"id": row.uid, "value": row.value} for row in rows]


def by_id(item: Any) -> int:
    return int(item["id"])


def with_id(row: Row, index: int) -> Any:
    return {"id": row.uid, "value": row.value}


def with_some_id(row: Row, index: int) -> Any:
    return {"uid": row.uid} | [{"id": row.uid}, {"id": None}, {"id": f"x{row.uid}"}, {}][row.uid % 4]


def uid_of(item: Any) -> int:
    return int(item["uid"])


def both(row: Row, index: int) -> Any:
    return row.uid, row.value


def plain_kinds() -> list[ByPosition]:
    """Return the kinds of sources that are read by position."""
    nested_dict = {
        "item": lambda row, index: {"deep": {"uid": row.uid, "tags": [row.value], "value": 1}},
        "uid": lambda item: item["deep"]["uid"],
        "face": both,
        "spoil": spoil_nested,
    }
    return [
        ByPosition("list of ints"),
        ByPosition("tuple of ints", wrap=tuple),
        ByPosition("strings", lambda row, index: f"row {row.uid}", lambda item: int(item[4:])),
        ByPosition("paths", lambda row, index: Path(f"/files/{row.uid}"), lambda item: int(item.name)),
        ByPosition(
            "dict rows", lambda row, index: {"uid": row.uid, "value": row.value}, lambda i: i["uid"], both, spoil_dict
        ),
        ByPosition("dict rows with id", with_id, by_id, spoil=spoil_dict),
        ByPosition("dict rows with ids of several kinds", with_some_id, uid_of, spoil=spoil_dict),
        ByPosition(
            "dict rows with ids of several kinds, generated",
            with_some_id,
            uid_of,
            spoil=spoil_dict,
            wrap=lambda items: lambda: (item for item in items),
            has_length=False,
        ),
        ByPosition("nested dicts", **nested_dict),  # type: ignore[arg-type]
        ByPosition(
            "dict rows, some with a list",
            lambda row, index: {"uid": row.uid, "value": row.value, "tags": [row.uid] if row.uid % 2 else None},
            lambda item: item["uid"],
            both,
            spoil_optional,
        ),
        ByPosition("lists", lambda row, index: [row.uid, str(row.value)], lambda item: item[0], both, append),
        ByPosition("namedtuples", lambda row, index: Pair(row.uid, row.value), lambda item: item.uid, both),
        ByPosition("dataclasses", lambda row, index: Record(row.uid, row.value), lambda i: i.uid, both, set_value),
        ByPosition("sequence of one's own", wrap=Letters),
        ByPosition("generator function", wrap=lambda items: lambda: (item for item in items), has_length=False),
        ByPosition("dict.items()", both, lambda item: item[0], both, wrap=lambda items: dict(items).items()),
        ByPosition(
            "enumerate", lambda row, index: row.uid, lambda item: item[1], wrap=lambda items: lambda: enumerate(items)
        ),
        ByPosition("mixed", mixed, uid_of_mixed),
        ByPosition("things", lambda row, index: Thing(row.uid), lambda item: item.number, None),
        ByPosition(
            "things, no length",
            lambda row, index: Thing(row.uid),
            lambda i: i.number,
            None,
            wrap=iter,
            has_length=False,
        ),
        ByPosition(
            "equal by identity",
            with_id,
            by_id,
            lambda row, index: row.value,
            spoil_dict,
            identity=lambda item: item["value"],
        ),
    ]


def instances(make: Callable[[Row], Any]) -> list[Kind]:
    """Return lists of model instances."""
    return [InKeyOrder(f"instances in {order} order", make, order) for order in ("key", "reverse", "any")]


def keyed_kinds() -> list[Kind]:
    """Return the kinds of sources that are read by key."""
    return [
        ByKey("keyed by name", lambda rows: keyed(dicts(rows), key="id"), by_id, spoil_dict),
        ByKey("keyed by function", lambda rows: keyed(dicts(rows), key=by_id), by_id, spoil_dict),
        ByKey("keyed, descending", lambda rows: keyed(dicts(rows), "id", True), by_id, spoil_dict, descending=True),
        Unsorted("keyed, unsorted", lambda rows: keyed(dicts(rows), key="id"), by_id, spoil_dict),
        ByKey("keyed_pages", in_table, lambda item: item[0]),
        ByKey("keys of a mapping", lambda rows: keys({row.uid: row for row in rows}), lambda item: item),
    ]


def paged_kinds() -> list[Kind]:
    """Return pages."""
    return [InPages(f"pages by {token}", token) for token in ("page", "offset", "address", "key")]


def file_kinds(folder: Path) -> list[Kind]:
    """Return files shorter and longer than the part that is compared."""
    return [
        InFile(f"{form}, rows of {width}", form, width, folder)
        for form in ("csv", "lines", "json")
        for width in (40, 700, 6000)
    ]


def nested_kinds(folder: Path, make: Callable[[Row], Any]) -> list[Kind]:
    """Return nested sources."""
    ints, rows, plain = (one for one in plain_kinds() if one.name in ("list of ints", "dict rows", "nested dicts"))
    things = next(one for one in plain_kinds() if one.name == "things")
    by_key, *_ = keyed_kinds()
    by_page, *_ = paged_kinds()
    in_key_order, *_, in_any_order = instances(make)
    file = InFile("outer file", "lines", 700, folder)
    return [
        Within("position in position", ints, rows),
        Within("nested dicts in dict rows", rows, plain),
        Within("keyed in position", ints, by_key),
        Within("position in keyed", by_key, ints),
        Within("position in instances", in_key_order, rows),
        Within("position in instances in any order", in_any_order, rows),
        Within("pages in position", rows, by_page),
        Within("position in pages", by_page, ints),
        Within("position in a file", file, ints),
        Within("things in position", ints, things),
        Within("files in position", ints, InFile("inner file", "csv", 300, folder)),
    ]


# -- a case


class Violation(AssertionError):
    """A loop has skipped or repeated rows, has reported a change without one, or has missed a change."""


INFORMATIVE = re.compile(
    r"was done and has changed|items of (this loop|page .*) were done, but it has|had [\d,]+ items|"
    r"has another start or step|was replaced:|was truncated:|has changed:|is followed by|"
    r"is gone|outer"
)


class Case:
    """One task, from its first execution to its end.

    Args:
        kind: of source.
        seed: for all random choices.
        batch: items to a list, or None.
        throttles: whether the source throttles at random.

    Attributes:
        end: ``"done"``, or ``"raised"``.
        errors: the error that ended it.
    """

    def __init__(self, kind: Kind, seed: int, batch: int | None = None, throttles: bool | None = None) -> None:
        self.kind, self.batch, self.throttles = kind, batch, throttles
        self.rng = random.Random(f"{kind.name} {seed} {batch} {throttles}")
        self.label = f"{kind.name}, seed {seed}, batch={batch}, throttled={throttles}"
        self.world = World(self.rng, kind.depth, kind.sizes)
        self.done: Counter[Any] = Counter()
        self.text = Snapshot().dumps()
        self.place: tuple[list[Row], Any] | None = None  # the rows and the last uid at the save
        self.killed = self.started = False
        self.may_miss = False
        self.end = ""
        self.error: Exception | None = None

    def run(self) -> Case:
        try:
            self.stages()
        finally:
            self.kind.clean()
        return self

    def stages(self) -> None:
        throughout = self.leaves()
        verdict = GO_ON
        for left in range(self.rng.choice([1, 2, 2, 3, 4]), -1, -1):
            outcome = self.execute(is_last=left == 0)
            if isinstance(outcome, InvalidStepError) and self.kind.allowed(outcome, self.ordered()):
                self.end = "raised"
                return
            if isinstance(outcome, SourceChangedError):
                self.end, self.error = "raised", outcome
                if verdict.must == "go on":
                    self.fail(f"a false alarm: {outcome}")
                if not INFORMATIVE.search(str(outcome)):
                    self.fail(f"an error that does not name the change: {outcome}")
                return
            if isinstance(outcome, Exception):
                raise Violation(f"{self.label}: {outcome!r}") from outcome
            if verdict.must == "raise" and (outcome == "done" or self.started):
                self.fail("a change of what was done went unseen")
            self.may_miss |= verdict.may_miss and (outcome == "done" or self.started)
            if outcome == "done":
                self.check(throughout)
                return
            before = self.place
            self.world.change(None if before is None else self.index_of(before[1]))
            throughout &= self.leaves()
            verdict = GO_ON if before is None else self.kind.verdict(before[0], self.ordered(), before[1])
        self.fail("it never ended")

    def index_of(self, last: Any) -> int | None:
        """Return the position of a row in the world."""
        uid = last if self.kind.depth == 1 else last[0]
        return next((index for index, row in enumerate(self.world.rows) if row.uid == uid), None)

    def check(self, throughout: set[Any]) -> None:
        self.end = "done"
        if self.may_miss:
            return
        for uid in throughout:
            count = self.done[uid]
            if count == 0:
                self.fail(f"row {uid} was left out, of {len(throughout)} that were there throughout")
            if count > 1 and not self.killed:
                self.fail(f"row {uid} was done {count} times")

    def fail(self, problem: str) -> NoReturn:
        raise Violation(f"{self.label}: {problem}")

    def ordered(self) -> list[Row]:
        return self.kind.order(self.world.rows)

    def leaves(self) -> set[Any]:
        if self.kind.depth == 1:
            return {row.uid for row in self.world.rows}
        return {(row.uid, inner.uid) for row in self.world.rows for inner in row.inner}

    def execute(self, is_last: bool) -> Any:
        """Run the task once from its snapshot; return ``"left"``, ``"done"``, or its error."""
        rng, rows = self.rng, self.ordered()
        if self.place is None:
            self.kind.begin(rows)
        source = self.kind.source(rows)
        if self.throttles is not None:
            allowance = [0 if is_last or not self.throttles else 2]

            def hold() -> bool:
                if allowance[0] and rng.random() < 0.15:
                    allowance[0] -= 1
                    return True
                return False

            source = throttled(source, hold, backoff=1)
        host = Host()
        snapshot = Snapshot.loads(self.text)
        run = Run("some-id", snapshot, host)
        last: list[Any] = [None]
        current: list[Any] = [None]

        def save(run: Run) -> None:
            self.text = run.take_snapshot().dumps()
            cursor = run.current.cursor if run.current is not None else None
            reached = self.kind.reached(cursor, last[0], current[0])
            if reached is not None:
                self.place = (rows, reached)

        host.on_save = save
        stop_at = 10**9 if is_last else rng.randrange(1, 8 + len(rows) // 2)
        how = rng.choice(["stop", "stop", "kill"])
        in_the_middle = rng.random() < 0.3
        self.started = False
        try:
            loop = run.declare(Iteration(run, "loop", opener("loop", source, self.batch, None, self.kind.identity)))
            for count, item in enumerate(loop, 1):
                self.started = True
                items = item if self.batch is not None else [item]
                uids = [self.kind.uids(one) for one in items]
                current[0] = uids[0]
                wish = rng.choice([None, None, "look", "save"])
                if count == stop_at:
                    wish = how
                if rng.random() < 0.5:
                    for one in items:
                        self.kind.spoil(one, rng)
                    if self.batch is not None:
                        items.pop() if rng.random() < 0.5 else items.clear()
                is_in_the_middle = in_the_middle if wish == how else rng.random() < 0.3
                if wish is not None and is_in_the_middle:
                    if wish == "kill":
                        raise Killed
                    host.wish, run.attention = wish, True
                    run.checkpoint()
                    if wish == how:
                        wish = "stop"  # it was too early
                if wish == "kill":
                    self.done.update(uids)
                    raise Killed
                self.done.update(uids)
                last[0] = uids[-1]
                host.wish, run.attention, current[0] = wish, wish is not None, None
            run.finish()
        except Interrupt as interrupt:
            traceback.clear_frames(interrupt.__traceback__)
            save(run)
            snapshot.resumptions += 1
            self.text = snapshot.dumps()
            return "left"
        except Killed:
            self.killed = True
            return "left"
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # which keep open what the loop reads
            return error
        return "done"


def cases(kind: Kind, seeds: range) -> Iterator[Case]:
    """Run and yield cases of a kind of source: plain, in batches and throttled."""
    for seed in seeds:
        batch = (None, None, 1, 2, 3)[seed % 5]
        throttles = (None, None, None, False, True, True, None)[seed % 7]
        yield Case(kind, seed, batch, throttles).run()


# -- single loops


class Task:
    """The argument of a loop's body: the task's methods, and a way to stop it.

    Attributes:
        iteration: the loop.
    """

    def __init__(self, run: Run, host: Host) -> None:
        self._run, self._host = run, host
        self.checkpoint = run.checkpoint
        self.iteration: Any = None

    def step(self, name: str, function: Any = None, **options: Any) -> Any:
        if function is not None:
            return self._run.call(name, function, (), {})
        return self._run.declare(Step(self._run, name, **options))

    def iterate(
        self, source: Any, *, name: str = "loop", batch: Any = None, total: Any = None, identity: Any = AUTO
    ) -> Any:
        self.iteration = self._run.declare(Iteration(self._run, name, opener(name, source, batch, total, identity)))
        return self.iteration

    def stop(self) -> None:
        self._host.wish, self._run.attention = "stop", True


class Executions:
    """Executions of a task, each from the text of the previous one's snapshot.

    Attributes:
        text: of the snapshot.
        hosts: of the executions.
    """

    def __init__(self) -> None:
        self.text = Snapshot().dumps()
        self.hosts: list[Host] = []

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot.loads(self.text)

    def run(self, body: Callable[[Task], Any]) -> Any:
        """Run a task once; return its value, its error, or the interruption."""
        host = Host()
        self.hosts.append(host)
        snapshot = self.snapshot
        run = Run("some-id", snapshot, host)
        try:
            found = body(Task(run, host))
            run.finish()
        except (Interrupt, Exception) as error:
            traceback.clear_frames(error.__traceback__)  # which keep open what the loop reads
            found = error
            snapshot.resumptions += isinstance(error, Interrupt)
        self.text = run.take_snapshot().dumps()
        return found

    def loop(self, source: Any, count: int | None = None, spoil: Any = None, **options: Any) -> Any:
        """Do `count` items and stop, or do all; return the items that were done, or the error."""
        done: list[Any] = []

        def body(task: Task) -> None:
            for number, item in enumerate(task.iterate(source, **options), 1):
                done.append(copy.copy(item))
                if spoil is not None:
                    spoil(item)
                if number == count:
                    task.stop()

        found = self.run(body)
        return found if isinstance(found, Exception) else done


def changed(before: Any, count: int, now: Any, **options: Any) -> str:
    """Return the problem and the advice of the error that a change causes."""
    executions = Executions()
    executions.loop(before, count, **options)
    error = executions.loop(now, **options)
    assert isinstance(error, SourceChangedError), error
    return f"{error.problem}\n{error.advice}"
