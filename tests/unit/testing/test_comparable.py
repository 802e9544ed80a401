"""check= results are compared by content: whatever a test returns, or it is refused with what to write."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pydantic
import pytest
import sqlalchemy as sa
from django.contrib.auth.models import Group, User
from sqlalchemy import orm

from celery_continuations.testing import assert_resumable
from celery_continuations.testing.comparable import Generated, comparable
from celery_continuations.testing.differences import differences


class Base(orm.DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    n: orm.Mapped[int]
    at: orm.Mapped[dt.datetime | None] = orm.mapped_column(server_default=sa.func.now())
    by: orm.Mapped[str | None] = orm.mapped_column(default=lambda: str(uuid.uuid4()))
    flag: orm.Mapped[int | None] = orm.mapped_column(default=0, server_default="0")
    note: orm.Mapped[str] = orm.mapped_column(default="", deferred=True)


class Colour(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass(eq=False)
class Point:
    x: Any
    seen: int = field(default=0, compare=False)


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", arbitrary_types_allowed=True)
    n: Any


class Plain:
    def __init__(self, n: Any) -> None:
        self.n = n


class Slotted:
    __slots__ = ("__private", "n")

    def __init__(self, n: Any) -> None:
        self.n = self.__private = n


class Equal:
    """It has an equality of its own."""

    def __init__(self, n: Any) -> None:
        self.n = n

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal) and bool(self.n == other.n)

    __hash__ = None  # type: ignore[assignment]


class Rows(collections.UserList[Any]):
    pass


# Each makes a value that contains a number: two with the same number are the same, two with others differ.
MAKERS: dict[str, Callable[[Any], Any]] = {
    "number": lambda n: n,
    "text": str,
    "bytes": lambda n: b"%d" % n,
    "bytearray": lambda n: bytearray(b"%d" % n),
    "float": float,
    "decimal": Decimal,
    "date": lambda n: dt.date(2024, 1, n),
    "datetime": lambda n: dt.datetime(2024, 1, n),
    "uuid": lambda n: uuid.UUID(int=n),
    "list": lambda n: [0, n],
    "tuple": lambda n: (0, n),
    "set": lambda n: {0, n},
    "frozenset": lambda n: frozenset((0, n)),
    "dict": lambda n: {"n": n},
    "key of a dict": lambda n: {n: 0},
    "defaultdict": lambda n: collections.defaultdict(list, n=[n]),
    "counter": lambda n: collections.Counter({"n": n}),
    "deque": lambda n: collections.deque([n]),
    "mapping proxy": lambda n: MappingProxyType({"n": n}),
    "chain of maps": lambda n: collections.ChainMap({"n": n}),
    "user list": lambda n: Rows([Group(id=1, name=str(n))]),
    "values": lambda n: {"n": n}.values(),
    "keys": lambda n: {n: 0}.keys(),
    "items": lambda n: {"n": n}.items(),
    "generator": lambda n: (one for one in [n]),
    "map": lambda n: map(int, [n]),
    "range": range,
    "named tuple": lambda n: Pair(n, [n]),
    "namespace": lambda n: SimpleNamespace(n=n),
    "object": Plain,
    "object in an object": lambda n: Plain(Plain([n])),
    "object with slots": Slotted,
    "object with an equality": Equal,
    "set of objects": lambda n: {Plain(1), Plain(n + 1)},
    "objects as keys": lambda n: {Plain(n): 1},
    "dataclass": Point,
    "pydantic model": lambda n: Model(n=Plain(n)),
    "pydantic extra": lambda n: Model(n=0, more=n),
    "exception": ValueError,
    "model of Django": lambda n: Group(id=1, name=str(n)),
    "key of a model of Django": lambda n: Group(id=n, name="same"),
    "annotated model of Django": lambda n: annotated(Group(id=1, name="same"), n),
    "models of Django in a set": lambda n: {Group(id=1, name=str(n)), Group(id=2)},
    "model of SQLAlchemy": lambda n: Item(id=1, n=n),
    "model of SQLAlchemy in a dict": lambda n: {"item": [Item(id=1, n=n)]},
}


def annotated(instance: Any, n: int) -> Any:
    instance.count = n
    return instance


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_the_same_and_what_differs(kind: str) -> None:
    make = MAKERS[kind]
    one, same, other = (comparable(make(n), "check()") for n in (1, 1, 2))
    assert one == same
    assert one != other
    assert differences("check()", one, same) == []
    assert len(differences("check()", one, other)) in (1, 2)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_copy_does_not_change_with_the_value(kind: str) -> None:
    value = [MAKERS[kind](1)]
    copied = comparable(value, "check()")
    value.append(1)
    assert copied == comparable([MAKERS[kind](1)], "check()")


@pytest.mark.parametrize("nan", [float("nan"), Decimal("nan"), Decimal("snan"), complex("nan")])
def test_not_a_number_is_the_same_as_itself(nan: Any) -> None:
    assert comparable([nan], "check()") == comparable([nan], "check()") != comparable([0], "check()")


@pytest.mark.parametrize("value", [Colour.RED, Colour, len, None, dt.timezone.utc])
def test_what_is_only_itself(value: Any) -> None:
    assert comparable(value, "check()") == value


def test_an_object_that_contains_itself() -> None:
    one, rows = Plain(1), [1]
    one.n = [one]
    rows.append(rows)  # type: ignore[arg-type]
    assert comparable(one, "check()") == comparable(one, "check()")
    assert comparable(rows, "check()") == comparable(rows, "check()")


def test_fields_that_do_not_count() -> None:
    assert comparable(Point(1, seen=1), "check()") == comparable(Point(1, seen=2), "check()")


def test_arrays_and_frames() -> None:
    numpy, pandas = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    makers: list[Callable[[Any], Any]] = [
        lambda n: numpy.array([[0, n]]),
        lambda n: numpy.float64(n),
        lambda n: pandas.Series([n, float("nan"), pandas.NaT, pandas.NA]),
        lambda n: pandas.DataFrame({"a": [n, float("nan")]}),
        lambda n: pandas.DataFrame({"a": [1]}, index=[n]),
        lambda n: pandas.Timestamp(2024, 1, n),
        lambda n: [pandas.NaT, n],
    ]
    for make in makers:
        one, same, other = (comparable(make(n), "check()") for n in (1, 1, 2))
        assert one == same
        assert one != other


# -- refusals


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            {"rows": [1, threading.Lock()]},
            r"check\(\)\['rows'\]\[1\] cannot be compared, because a lock equals nothing",
        ),
        ([object()], r"check\(\)\[0\] .* because an object equals nothing but itself and has no attributes: .* return"),
        (Plain(object()), r"check\(\)\.n cannot be compared"),
        ([{"a": Pair(object(), 1)}], r"check\(\)\[0\]\['a'\]\.left cannot"),
        (Equal(float("nan")), r"check\(\) cannot be compared, because an Equal does not equal its own copy"),
        (memoryview(b"12").cast("B"), None),
    ],
)
def test_what_cannot_be_compared(value: Any, text: str | None) -> None:
    if text is None:
        assert comparable(value, "check()") == b"12"
        return
    with pytest.raises(ValueError, match=text):
        comparable(value, "check()")


def test_what_is_nested_too_deeply() -> None:
    nested: Any = []
    for _ in range(10_000):
        nested = [nested]
    with pytest.raises(ValueError, match=r"check\(\) cannot be compared, because a list is nested too deeply"):
        comparable(nested, "check()")


def test_what_cannot_be_copied() -> None:
    class Locked(Equal):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("no copy")

    with pytest.raises(ValueError, match=r"because a Locked raises TypeError: no copy; return lists"):
        comparable(Locked(1), "check()")


# -- rows


@pytest.fixture
def session(tmp_path: Path) -> Iterator[orm.Session]:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/db")
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add_all([Item(id=1, n=10), Item(id=2, n=20)])
        session.commit()
        yield session
    engine.dispose()


def test_rows_of_sqlalchemy(session: orm.Session) -> None:
    found = [
        comparable(session.execute(sa.select(Item.id, Item.n)), "check()"),
        comparable(session.execute(sa.select(Item.id, Item.n)).all(), "check()"),
        comparable(session.query(Item.id, Item.n), "check()"),
    ]
    assert found == [[(1, 10), (2, 20)]] * 3
    items = [
        comparable(session.scalars(sa.select(Item)), "check()"),
        comparable(session.scalars(sa.select(Item)).all(), "check()"),
        comparable(session.query(Item), "check()"),
        [row[0] for row in comparable(session.execute(sa.select(Item)).all(), "check()")],
    ]
    session.execute(sa.update(Item).values(n=Item.n + 1))
    session.commit()
    changed = comparable(session.scalars(sa.select(Item)).all(), "check()")
    for before in items:
        assert differences("check()", before, changed) == [
            "check()[0].n: expected 10, found 11",
            "check()[1].n: expected 20, found 21",
        ]


def test_expired_instances_of_a_closed_session_are_refused(session: orm.Session) -> None:
    items = session.scalars(sa.select(Item)).all()
    session.commit()
    session.close()
    with pytest.raises(ValueError, match=r"check\(\)\[0\] .* of this Item has expired .* write \[\(one.id, one.n"):
        comparable(items, "check()")


def test_querysets(django_database: Any) -> None:
    Group.objects.bulk_create(Group(name=name) for name in ("ann", "bob"))
    for rows in (
        lambda: Group.objects.order_by("pk"),
        lambda: list(Group.objects.order_by("pk")),
        lambda: Group.objects.order_by("pk").iterator(),
        lambda: Group.objects.raw("SELECT * FROM auth_group ORDER BY id"),
        lambda: Group.objects,
    ):
        one = comparable(rows(), "check()")
        assert [row.parts["name"] for row in one] == ["ann", "bob"]
        Group.objects.filter(name="bob").update(name="eve")
        assert differences("check()", one, comparable(rows(), "check()")) == [
            "check()[1].name: expected 'bob', found 'eve'"
        ]
        Group.objects.filter(name="eve").update(name="bob")
    assert comparable(Group.objects.values_list("name", flat=True), "check()") == ["ann", "bob"]
    assert comparable(Group.objects.values("name"), "check()") == [{"name": "ann"}, {"name": "bob"}]
    only = comparable(Group.objects.only("id").first(), "check()")
    assert "name" not in only.parts


def test_generated_columns(session: orm.Session) -> None:
    generated = Generated()
    comparable([1, Plain(2)], "check()", generated)
    assert not generated.were_met
    generated.are_compared = False
    assert "id" not in comparable(Group(id=1, name="a"), "check()", generated).parts
    assert generated.were_met
    assert sorted(comparable(session.get(Item, 1), "check()", generated).parts) == ["flag", "n"]
    parts = comparable(User(id=1), "check()", generated).parts
    assert "date_joined" not in parts
    assert "username" in parts


# -- tasks


def test_a_double_increment_is_found_in_model_instances(task: Any, django_database: Any) -> None:
    def increment(self: Any) -> None:
        for user in self.iterate("users", User.objects.order_by("pk")):
            User.objects.filter(pk=user.pk).update(first_name=user.first_name + "!")

    def setup() -> None:
        User.objects.all().delete()
        User.objects.bulk_create(User(username=name) for name in ("ann", "bob"))

    for check in (lambda: list(User.objects.order_by("pk")), lambda: User.objects.order_by("pk")):
        with pytest.raises(AssertionError, match=r"killed at place 1 .*\n.*check\(\)\[0\].first_name: expected '!'"):
            assert_resumable(task(increment), setup=setup, check=check)


def test_new_rows_have_new_keys_in_each_run(task: Any, django_database: Any) -> None:
    def load(self: Any, names: list[str]) -> None:
        for name in self.iterate("names", names):
            Group.objects.get_or_create(name=name)

    def double(self: Any, names: list[str]) -> None:
        for name in self.iterate("names", names):
            Group.objects.create(name=f"{name} {Group.objects.count()}")

    def setup() -> None:
        Group.objects.all().delete()

    options: dict[str, Any] = {"setup": setup, "check": lambda: Group.objects.order_by("pk"), "pairs": 10}
    assert_resumable(task(load), ["ann", "bob"], **options)
    with pytest.raises(AssertionError, match="killed at place 1"):
        assert_resumable(task(double), ["ann", "bob"], **options)
