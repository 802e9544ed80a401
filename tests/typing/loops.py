"""Loops: the items that each source yields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import assert_type

from celery_continuations import ContinuableTask, continuable
from celery_continuations.core.iteration import Iteration
from celery_continuations.sources import (
    Source,
    batched,
    csv_rows,
    json_lines,
    keyed,
    keyed_pages,
    keys,
    lines,
    nested,
    pages,
    register,
    throttled,
)


@dataclass
class User:
    """A row."""

    id: int
    name: str


class Manager:
    """As Django's."""

    def all(self) -> list[User]:
        return []


class Countdown:
    """A source of one's own."""

    def read(self, cursor: Any) -> Iterator[tuple[int, int]]:
        yield 1, 2


class Archive:
    """A class that register makes known."""


register(Archive, lambda archive: Countdown())


def users() -> Iterator[User]:
    yield User(1, "ann")


@continuable
def sequences(self: ContinuableTask, rows: list[User], names: dict[str, int]) -> None:
    for row in self.iterate("list", rows):
        assert_type(row, User)
        # wrong: mypy=attr-defined pyright=reportAttributeAccessIssue
        row.nmae
    for number in self.iterate("range", range(3)):
        assert_type(number, int)
    for pair in self.iterate("items", names.items()):
        assert_type(pair, tuple[str, int])
    for numbered in self.iterate("enumerate", enumerate(rows)):
        assert_type(numbered, tuple[int, User])
    for batch in self.iterate("batches", rows, batch=500):
        assert_type(batch, list[User])
    for row in self.iterate("function", users):
        assert_type(row, User)
    for row in self.iterate("lambda", lambda: rows):
        assert_type(row, User)
    for number in self.iterate("lambda of a range", lambda: range(3)):
        assert_type(number, int)
    for row in self.iterate("manager", Manager()):
        assert_type(row, User)
    for row in self.iterate("identity", rows, identity=lambda row: row.name):
        assert_type(row, User)
    # wrong: mypy=attr-defined pyright=reportAttributeAccessIssue
    self.iterate("identity", rows, identity=lambda row: row.nmae)
    # wrong: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    self.iterate("number", 3)
    # wrong: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    self.iterate("archive", Archive())
    for countdown in self.iterate("registered", lambda: Countdown()):
        assert_type(countdown, int)
    # wrong: mypy=call-overload pyright=reportCallIssue
    self.iterate("misspelt", rows, btach=500)
    # wrong: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    self.iterate("batch", rows, batch="500")
    # wrong: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    self.iterate("total", rows, total="cuont")


@continuable
def loop(self: ContinuableTask, rows: list[User], size: int | None) -> None:
    loop = self.iterate("rows", rows, on_error=3, total="count")
    assert_type(loop, Iteration[User])
    assert_type(loop.total, int | None)
    for row in loop:
        assert_type(row, User)
        with loop.attempt():
            assert_type(row.name, str)
        # wrong: mypy=attr-defined pyright=reportAttributeAccessIssue
        loop.atempt()
    assert_type(loop.failed, list[tuple[Any, str]])
    assert_type(self.iterate("perhaps", rows, batch=size), Iteration[User] | Iteration[list[User]])


@continuable
def files(self: ContinuableTask, path: Path) -> None:
    for row in self.iterate("csv", csv_rows(path)):
        assert_type(row, dict[str | Any, str | Any])
        row["email"].lower()
        takes_row(row)
    for fields in self.iterate("without header", csv_rows(path, header=False)):
        assert_type(fields, list[str])
    for line in self.iterate("lines", lines("users.txt")):
        assert_type(line, str)
    for value in self.iterate("json", json_lines("users.jsonl", encoding="latin-1")):
        assert_type(value, Any)
    for anything in self.iterate("path", path):
        assert_type(anything, Any)
    with path.open() as file:
        for line in self.iterate("open", file):
            assert_type(line, str)
        assert_type(lines(file), Source[str])
    # wrong: mypy=call-overload pyright=reportArgumentType
    csv_rows(3)
    # wrong: mypy=call-overload pyright=reportCallIssue
    csv_rows(path, encodign="latin-1")
    csv_rows(path, header=False, delimiter=";", quotechar=None)
    # wrong: mypy=call-overload pyright=reportArgumentType
    csv_rows(path, delimiter=3)
    # wrong: mypy=call-arg pyright=reportCallIssue
    lines(path, encodign="latin-1")


def takes_row(row: dict[str, str]) -> None: ...


@continuable
def made_of_others(self: ContinuableTask, rows: list[User]) -> None:
    for row in self.iterate("keyed", keyed(rows, key="id")):
        assert_type(row, User)
    for row in self.iterate("keyed", keyed(rows, key=lambda row: row.id, descending=True)):
        assert_type(row, User)
    # wrong: mypy=attr-defined pyright=reportAttributeAccessIssue
    keyed(rows, key=lambda row: row.di)
    # wrong: mypy=arg-type pyright=reportArgumentType
    keyed(3, key="id")
    for batch in self.iterate("batched", batched(rows, 5)):
        assert_type(batch, list[User])
    for row in self.iterate("throttled", throttled(rows, lambda: False, backoff=30)):
        assert_type(row, User)
    for name in self.iterate("keys", keys({"ann": 1})):
        assert_type(name, str)
    for user, number in self.iterate("nested", nested(rows, lambda user: range(user.id))):
        assert_type(user, User)
        assert_type(number, int)
    for triple in self.iterate("deeper", nested(rows, lambda user: range(user.id), lambda user, number: [user.name])):
        # wrong: mypy=assert-type
        assert_type(triple, tuple[User, int, str])
    # wrong: mypy=attr-defined pyright=reportAttributeAccessIssue
    nested(rows, lambda user: range(user.di))
    levels = nested(rows, lambda a: [a], lambda a, b: [b], lambda a, b, c: [c])
    assert_type(levels, Source[tuple[Any, ...]])
    # wrong: mypy=call-overload pyright=reportArgumentType
    nested(rows, 3)
    # wrong: mypy=call-arg pyright=reportCallIssue
    batched(rows)
    # wrong: mypy=call-arg pyright=reportCallIssue
    throttled(rows, lambda: False, backof=30)
    # wrong: mypy=arg-type pyright=reportArgumentType
    keys([1])
    for number in self.iterate("own", Countdown()):
        assert_type(number, int)
    for numbers in self.iterate("own in batches", Countdown(), batch=3):
        assert_type(numbers, list[int])


def users_after(last: int | None) -> list[User]:
    return []


def users_of_page(token: str | None) -> tuple[Iterable[User], str | None]:
    return [], None


def wrong_page(token: str | None) -> list[User]:
    return []


@continuable
def paged(self: ContinuableTask) -> None:
    for user in self.iterate("after", keyed_pages(users_after, key="id")):
        assert_type(user, User)
    for user in self.iterate("after", keyed_pages(users_after, key=lambda user: user.id)):
        assert_type(user, User)
    for user in self.iterate("pages", pages(users_of_page)):
        assert_type(user, User)
    # wrong: mypy=call-arg pyright=reportCallIssue
    keyed_pages(users_after, kye="id")
    # wrong: mypy=arg-type pyright=reportArgumentType
    pages(wrong_page)
