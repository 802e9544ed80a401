"""The claims of docs/sources.md: each loop of its first table, the error shown, how many ids fit."""

from __future__ import annotations

import random
import re
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery import states
from sqlalchemy import orm

from celery_continuations import InvalidStepError, SourceChangedError
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.sources import csv_rows, keyed, keyed_pages, pages
from celery_continuations.sources.sqlalchemy import sessions

PAGE = Path(__file__).parents[3] / "docs" / "sources.md"
README = PAGE.parents[1] / "README.md"

NAMES = [f"user{number}" for number in range(8)]


def everyday_rows(page: Path) -> list[tuple[str, str]]:
    """Return the first two columns of the table of loops."""
    table = page.read_text().partition("| a loop over | is |")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]
    return [(cell[0], cell[1]) for cell in cells]


class World:
    """Eight users in a database; the first two are deleted once four are done.

    Attributes:
        done: names, in the order in which a loop came to them.
    """

    def __init__(self, folder: Path, database: Path, monkeypatch: Any) -> None:
        from django.contrib.auth.models import User
        from django.core.paginator import Paginator

        User.objects.bulk_create([User(id=10 + n, username=name) for n, name in enumerate(NAMES)])
        self.done: list[str] = []
        self.path = folder / "users.csv"
        self.path.write_text("username\n" + "\n".join(NAMES) + "\n")
        base = orm.declarative_base()
        account = type(
            "Account",
            (base,),
            {
                "__tablename__": "auth_user",
                "id": orm.mapped_column(sa.Integer, primary_key=True),
                "username": orm.mapped_column(sa.Text),
            },
        )
        engine = sa.create_engine(f"sqlite:///{database}")
        monkeypatch.setattr("celery_continuations.sources.sqlalchemy._sessions", None, raising=False)
        sessions(orm.sessionmaker(engine))
        self.shuffled = 0
        self.connection = sqlite3.connect(database)
        self.names: dict[str, Any] = {
            "csv_rows": csv_rows, "keyed": keyed, "keyed_pages": keyed_pages, "pages": pages, "path": self.path,
            "User": User, "Paginator": Paginator, "Account": account, "select": sa.select,
            "session": orm.Session(engine), "db": self, "is_due": lambda user: True,
            "name_of": lambda user: user.pk % 3, "random": self, "rows": self.rows,
            "rows_after": self.rows_after, "page_by_number": self.page_by_number,
            "frame": type("DataFrame", (), {"__module__": "pandas.core.frame", "__iter__": iter})(),
        }  # fmt: skip

    def sample(self, items: list[Any], size: int) -> list[Any]:
        """Return another order each time."""
        self.shuffled += 1
        return random.Random(self.shuffled).sample(items, min(size, len(items)))

    def execute(self, sql: str) -> Any:
        """Return a cursor with the rows of a query."""
        return self.connection.execute(sql)

    def rows(self) -> list[dict[str, Any]]:
        return list(self.names["User"].objects.order_by("pk").values("id", "username"))

    def rows_after(self, last: int | None) -> list[dict[str, Any]]:
        return [row for row in self.rows() if last is None or row["id"] > last][:2]

    def page_by_number(self, token: int | None) -> Any:
        number = token or 0
        found = self.rows()[2 * number : 2 * number + 2]
        return found, number + 1 if found else None

    def change(self) -> None:
        for user in self.names["User"].objects.order_by("pk")[:2]:
            user.delete()

    def note(self, item: Any) -> None:
        """Note the users that an item stands for."""
        for name in re.findall(r"user\d", str(getattr(item, "username", item))):
            self.done.append(name)


def slices(world: World, start: int) -> None:
    for user in world.names["User"].objects.order_by("pk")[start : start + 2]:
        world.note(user)


def grow(world: World) -> None:
    with world.path.open("a") as file:
        file.write("user8\n")


def numbers(world: World, number: int) -> None:
    world.done.append(f"{number}")


class Job:
    """Has nothing that tells it from others."""

    def __init__(self, name: str) -> None:
        self.__name = name

    def __str__(self) -> str:
        return self.__name


Body = Callable[[World, Any], None]
Change = Callable[[World], None]
REST = NAMES[4:]

# How to loop over what a first cell names: the expression where it is another one, what the body does, what changes.
LOOPS: dict[str, tuple[str | None, Body | None, Change | None]] = {
    "`csv_rows(path)`": (None, None, grow),
    "`range(1000)`": ("range(10)", numbers, None),
    "`rows()`, dicts or tuples from a query that runs again": ("rows()", None, None),
    "`db.execute(\"SELECT id, username FROM auth_user\").fetchall()`": (None, None, None),
    "`User.objects.values_list(\"username\", flat=True)` as a list": (
        'list(User.objects.values_list("username", flat=True).order_by("pk"))', None, None,
    ),
    "`Paginator(User.objects.order_by(\"pk\"), 2).page_range`": (
        None, lambda world, page: slices(world, 2 * page - 2), None,
    ),
    "`range(0, User.objects.count(), 2)` with slices": ("range(0, User.objects.count(), 2)", slices, None),
}  # fmt: skip

# Rows of the table that are no loop over these users: the tests of their own.
ELSEWHERE = {
    "`pagination` of Flask-SQLAlchemy, and its `iter_pages()`": "test_a_pagination_of_flask_sqlalchemy",
    '`["ok", "ok", "ok", "new"]`, equal items': "test_equal_items",
    "rows of which one from before the place and one from after it change places": "test_balanced_moves",
    "objects of a class without `id`, fields or values": "test_items_with_nothing_to_tell_them_apart",
}


@pytest.fixture
def world(tmp_path: Path, django_database: Path, monkeypatch: Any) -> Iterator[World]:
    made = World(tmp_path, django_database, monkeypatch)
    with closing(made.connection):
        yield made


def expression(cell: str) -> str:
    found = re.search(r"`(.*?)`", cell)
    assert found, cell
    return found[1]


@pytest.mark.parametrize(
    ("cell", "verdict"),
    [row for row in everyday_rows(PAGE) if row[0] not in ELSEWHERE],
)
def test_a_loop_of_every_day(worker: Any, task: Any, world: World, cell: str, verdict: str) -> None:
    code, body, change = LOOPS.get(cell, (None, None, None))
    code = code or expression(cell)
    pause = 2 if "page_range" in code or code.startswith("range(0") else 4

    def loop(self: Any) -> None:
        for count, item in enumerate(self.iterate("loop", eval(code, world.names)), 1):
            (body or World.note)(world, item)
            if count == pause and self.continuation.resumptions == 0:
                worker.stop()

    result = task(loop).delay()
    worker.deliver()
    if verdict == "refused":
        assert isinstance(result.result, InvalidStepError)
        assert not world.done
        return
    assert result.state == states.RETRY
    first, world.done = world.done, []
    (change or World.change)(world)
    worker.drain()
    if verdict == "checked":
        assert isinstance(result.result, SourceChangedError), result.result
        assert not world.done
        return
    assert result.state == states.SUCCESS
    if verdict == "silent":
        left_out = set(REST) - set(world.done)
        assert left_out, "the page says that it leaves something out"
        return
    assert verdict == "right"
    expected = {numbers: [str(n) for n in range(4, 10)], None: REST + ["user8"] * (change is grow)}
    assert world.done == expected[body]  # type: ignore[index]
    assert len(first) == 4


def test_the_table() -> None:
    rows = everyday_rows(PAGE)
    assert len(rows) == len(dict(rows))
    assert set(LOOPS) | set(ELSEWHERE) <= set(dict(rows))
    assert {verdict for _, verdict in rows} == {"right", "checked", "refused", "silent"}


def test_the_loops_of_the_readme_are_in_it_and_as_right() -> None:
    def verdicts(page: Path) -> dict[str, str]:
        rows = [(cell, verdict) for cell, verdict in everyday_rows(page) if "`" in cell]
        return {re.sub(r"\d+", "N", expression(cell)): verdict for cell, verdict in rows}

    in_readme = verdicts(README)
    assert set(in_readme.values()) == {"right", "checked", "silent"}
    assert in_readme.items() <= verdicts(PAGE).items()


def loop_over(worker: Any, task: Any, lists: list[list[Any]], stop_after: int) -> tuple[Any, list[str]]:
    """Loop over the first list, and in the next execution over the second one."""
    done: list[str] = []

    def loop(self: Any) -> None:
        for count, item in enumerate(self.iterate("loop", lists[self.continuation.resumptions]), 1):
            done.append(str(item))
            if count == stop_after and self.continuation.resumptions == 0:
                worker.stop()

    result = task(loop).delay()
    worker.drain()
    return result, done


def test_equal_items(worker: Any, task: Any) -> None:
    result, done = loop_over(worker, task, [["ok", "ok", "ok", "new"], ["ok", "ok", "new"]], 2)
    assert (result.state, done) == (states.SUCCESS, ["ok", "ok", "new"]), "three were ok"


def test_balanced_moves(worker: Any, task: Any) -> None:
    result, done = loop_over(worker, task, [list("abcdef"), list("ebcdaf")], 3)
    assert (result.state, done) == (states.SUCCESS, list("abc") + list("daf")), "e is left out, a is done twice"


def test_items_with_nothing_to_tell_them_apart(worker: Any, task: Any, caplog: Any) -> None:
    before, after = [Job(name) for name in "abcdef"], [Job(name) for name in "cdefgh"]
    with caplog.at_level("INFO", "celery_continuations"):
        result, done = loop_over(worker, task, [before, after], 3)
    assert (result.state, done) == (states.SUCCESS, list("abc") + list("fgh"))
    assert [one.action for one in caplog.records if getattr(one, "action", "") == "source_unchecked"]
    result, _ = loop_over(worker, task, [before, after[:5]], 3)
    assert isinstance(result.result, SourceChangedError)


def test_a_pagination_of_flask_sqlalchemy(worker: Any, task: Any) -> None:
    module = {"__module__": "flask_sqlalchemy.pagination"}

    def iter_pages(self: Any) -> Any:
        yield from range(1, 3)

    pagination = type("Pagination", (), {**module, "__iter__": iter_pages, "iter_pages": iter_pages})()
    for source in (pagination, pagination.iter_pages()):
        result, done = loop_over(worker, task, [source], 1)
        assert isinstance(result.result, InvalidStepError)
        assert not done


def test_the_error_shown() -> None:
    (block,) = (
        one for one in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S) if "rehearse(send)" in one
    )
    names: dict[str, Any] = {"seen": [], "pytest": pytest}
    before = "from celery import Celery\nfrom celery_continuations import ContinuableTask\napp = Celery('shop')\n"
    exec(before + block, names)
    (shown,) = re.findall(r"^```text\n(SourceChangedError.*?)^```", PAGE.read_text(), re.M | re.S)
    run = names["run"]
    assert shown == f"SourceChangedError: {run.error}\n".replace(str(run.id), "ID")


def test_how_many_ids_a_step_can_remember() -> None:
    def size(ids: list[Any]) -> int:
        snapshot = Snapshot()
        snapshot.completed["ids"] = Outcome.of_value(ids, "ids")
        return len(snapshot.dumps())

    largest = 256 * 1024
    assert size([1_000_000 + n for n in range(32_000)]) < largest < size([1_000_000 + n for n in range(33_000)])
    assert size([uuid.uuid4() for _ in range(6_200)]) < largest < size([uuid.uuid4() for _ in range(6_300)])
    assert size([10**18 + n for n in range(10_000)]) < largest


@pytest.mark.parametrize(
    ("retry", "expected"),
    [
        ({}, ["a", "b", "c", "d"]),  # with the first list again: code that fits
        ({"step": "loop"}, ["a", "b", "b", "c", "d"]),
        ({"accept_source": True}, ["a", "b", "d"]),
    ],
)
@pytest.mark.parametrize("swallows", [False, True])
def test_what_an_operator_can_do_about_a_source_that_has_changed(
    worker: Any, task: Any, retry: dict[str, Any], expected: list[str], swallows: bool
) -> None:
    done: list[str] = []
    items = list("abcd")

    def loop(self: Any) -> None:
        try:
            for item in self.iterate("loop", list(items)):
                done.append(item)
                if item == "b" and self.continuation.resumptions == 0:
                    worker.stop()
        except Exception:
            if not swallows:
                raise

    result = task(loop, autoretry_for=(Exception,)).delay()
    worker.deliver()
    items[:] = list("bcd")
    worker.deliver()
    assert isinstance(result.result, SourceChangedError), "autoretry_for does not retry it"
    assert (worker.queued(), done) == (0, ["a", "b"])
    if not retry:
        items[:] = list("abcd")
    result.retry(**retry)
    worker.drain()
    assert (result.state, done) == (states.SUCCESS, expected)


@pytest.mark.parametrize(
    "make", [lambda: pages(lambda _: ([1], None)), lambda: keyed_pages(lambda _: [], key=0), lambda: iter([1])]
)
def test_what_cannot_be_counted(worker: Any, task: Any, make: Any) -> None:
    def loop(self: Any) -> None:
        for _ in self.iterate("loop", make(), total="count"):
            pass

    result = task(loop).delay()
    worker.drain()
    assert isinstance(result.result, InvalidStepError)
