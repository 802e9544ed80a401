"""Selects of many shapes, over tables with repeated, missing, decorated and composite keys, beside the plain select."""

from __future__ import annotations

import enum
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import orm
from sqlalchemy.types import TypeDecorator

from celery_continuations import InvalidStepError
from celery_continuations.sources import opener
from celery_continuations.sources.sqlalchemy import from_select, select_rows
from tests.support.keyed_properties import saved

pytestmark = pytest.mark.exhaustive


class Base(orm.DeclarativeBase):
    pass


class Color(enum.Enum):
    RED = "z"
    GREEN = "m"
    BLUE = "a"


class AsText(TypeDecorator[UUID]):
    """UUIDs in the order of their texts backwards."""

    impl = sa.String(36)
    cache_ok = True

    def process_bind_param(self, value: UUID | None, dialect: Any) -> str | None:
        return None if value is None else str(value)[::-1]

    def process_result_value(self, value: str | None, dialect: Any) -> UUID | None:
        return None if value is None else UUID(value[::-1])


class Folded(TypeDecorator[str]):
    """Texts in lower case, stored as they were written: Python does not see what the order is by."""

    impl = sa.String(10)
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value.lower()


class Code:
    """A value that cannot be saved."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Code) and other.number == self.number

    def __hash__(self) -> int:
        return self.number


class AsNumber(TypeDecorator[Code]):
    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: Code | None, dialect: Any) -> int | None:
        return None if value is None else value.number

    def process_result_value(self, value: int | None, dialect: Any) -> Code | None:
        return None if value is None else Code(value)


class Team(Base):
    __tablename__ = "teams"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    color: orm.Mapped[Color]
    code: orm.Mapped[Code] = orm.mapped_column(AsNumber, unique=True)
    uuid: orm.Mapped[UUID] = orm.mapped_column(AsText, unique=True)
    folded: orm.Mapped[str] = orm.mapped_column(Folded, unique=True)
    extra: orm.Mapped[Any] = orm.mapped_column(sa.JSON, unique=True)
    members: orm.Mapped[list[Member]] = orm.relationship(back_populates="team", order_by="Member.number")


class Member(Base):
    """With a composite key; teams are missing, and repeated."""

    __tablename__ = "members"
    color: orm.Mapped[Color] = orm.mapped_column(primary_key=True)
    number: orm.Mapped[int] = orm.mapped_column(primary_key=True, autoincrement=False)
    team_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey("teams.id"))
    team: orm.Mapped[Team | None] = orm.relationship(back_populates="members")


TEAMS, MEMBERS = Team.__table__, Member.__table__
Other = orm.aliased(Member)
Again = orm.aliased(Team)


class Shape(NamedTuple):
    """A select, and what it has of a row by which rows can repeat, or why it is refused."""

    select: Any
    key: Callable[[Any], Any] | None = None
    refused: str | None = None


def itself(row: Any) -> Any:
    return row


def first(row: Any) -> Any:
    return row[0]


TEAM_ORDER = (Team.name, Team.id)
MEMBER_ORDER = (Member.color, Member.number)
SHAPES: dict[str, Shape] = {
    "entities": Shape(sa.select(Team)),
    "entities by two columns": Shape(sa.select(Team).order_by(Team.name.desc(), Team.id)),
    "entities by an enum": Shape(sa.select(Team).order_by(Team.color, Team.id.desc())),
    "entities by an enum alone": Shape(sa.select(Team).order_by(Team.color), refused="can share the same place"),
    "entities by a decorated UUID": Shape(sa.select(Team).order_by(Team.uuid)),
    "entities by a decorated text": Shape(sa.select(Team).order_by(Team.folded.desc())),
    "entities by an object": Shape(sa.select(Team).order_by(Team.code)),
    "entities by JSON": Shape(
        sa.select(Team).order_by(Team.extra), refused=r"by teams.extra \(JSON\): its values are JSON"
    ),
    "a composite key": Shape(sa.select(Member).order_by(*MEMBER_ORDER)),
    "a composite key in another order": Shape(sa.select(Member).order_by(Member.number.desc(), Member.color)),
    "an optional column": Shape(sa.select(Member).order_by(Member.team_id, *MEMBER_ORDER), refused="can be NULL"),
    "columns": Shape(sa.select(Team.name, Team.color).order_by(Team.id)),
    "columns of a table": Shape(sa.select(TEAMS.c.uuid, TEAMS.c.name).order_by(TEAMS.c.name, TEAMS.c.id)),
    "a table": Shape(sa.select(MEMBERS).order_by(MEMBERS.c.color.desc(), MEMBERS.c.number.desc())),
    "a join to one": Shape(sa.select(Member).join(Team).order_by(Team.name, *MEMBER_ORDER)),
    "a join to many": Shape(sa.select(Team).join(Member).order_by(Team.id), itself),
    "a join to many, distinct": Shape(sa.select(Team).join(Member).order_by(*TEAM_ORDER).distinct()),
    "columns of a join to many": Shape(sa.select(Team.id, Member.color).join(Member).order_by(Team.id), first),
    "both of a join": Shape(sa.select(Team, Member).join(Member).order_by(Team.id, *MEMBER_ORDER)),
    "columns of both of a join": Shape(
        sa.select(Team.name, Member.number).join(Member).order_by(Team.name, Team.id, *MEMBER_ORDER),
    ),
    "an outer join": Shape(
        sa.select(Team, Member).outerjoin(Member).order_by(Team.id, *MEMBER_ORDER), refused="the outer join finds"
    ),
    "an outer join by the other side": Shape(
        sa.select(Member, Team).outerjoin(Team, Member.team_id == Team.id).order_by(*MEMBER_ORDER)
    ),
    "the optional side of an outer join": Shape(
        sa.select(Member).select_from(sa.outerjoin(Team, Member)).order_by(*MEMBER_ORDER),
        refused="the outer join finds",
    ),
    "a full join": Shape(
        sa.select(Team).join(Member, full=True).order_by(Team.id), refused="the outer join finds nothing"
    ),
    "distinct in the order of a join": Shape(
        sa.select(Team).join(Member).distinct().order_by(Team.id, *MEMBER_ORDER), refused="lacks members.color"
    ),
    "joinedload": Shape(sa.select(Team).options(orm.joinedload(Team.members)).order_by(*TEAM_ORDER)),
    "joinedload of a join": Shape(
        sa.select(Team).join(Member).options(orm.joinedload(Team.members)).order_by(Team.id.desc())
    ),
    "joinedload beside a column": Shape(
        sa.select(Team, Team.name.label("label")).options(orm.joinedload(Team.members)).order_by(Team.id)
    ),
    "joinedload of both": Shape(
        sa.select(Team, Member).join(Member).options(orm.joinedload(Team.members)).order_by(Team.id, *MEMBER_ORDER)
    ),
    "joinedload of one, and of its many": Shape(
        sa.select(Member).options(orm.joinedload(Member.team).joinedload(Team.members)).order_by(*MEMBER_ORDER)
    ),
    "selectinload": Shape(sa.select(Team).options(orm.selectinload(Team.members)).order_by(*TEAM_ORDER)),
    "subqueryload": Shape(sa.select(Team).options(orm.subqueryload(Team.members)).order_by(*TEAM_ORDER)),
    "contains_eager": Shape(
        sa.select(Team).join(Team.members).options(orm.contains_eager(Team.members)).order_by(Team.id)
    ),
    "contains_eager, ordered": Shape(
        sa.select(Team)
        .join(Team.members)
        .options(orm.contains_eager(Team.members))
        .order_by(*TEAM_ORDER, Member.color.desc(), Member.number),
    ),
    "contains_eager of an outer join": Shape(
        sa.select(Team).outerjoin(Team.members).options(orm.contains_eager(Team.members)).order_by(Team.color, Team.id)
    ),
    "contains_eager of a condition": Shape(
        sa.select(Team)
        .join(Team.members)
        .where(Member.color != Color.RED)
        .options(orm.contains_eager(Team.members))
        .order_by(Team.code)
    ),
    "contains_eager of an alias": Shape(
        sa.select(Team)
        .join(Team.members.of_type(Other))
        .options(orm.contains_eager(Team.members.of_type(Other)))
        .order_by(Team.id.desc())
    ),
    "contains_eager of one": Shape(
        sa.select(Member).join(Member.team).options(orm.contains_eager(Member.team)).order_by(Team.name, *MEMBER_ORDER)
    ),
    "contains_eager of one, and of its many": Shape(
        sa.select(Member)
        .join(Member.team)
        .join(Team.members.of_type(Other))
        .options(orm.contains_eager(Member.team).contains_eager(Team.members.of_type(Other)))
        .order_by(*MEMBER_ORDER)
    ),
    "contains_eager in the order of the many": Shape(
        sa.select(Team).join(Team.members).options(orm.contains_eager(Team.members)).order_by(*MEMBER_ORDER, Team.id),
        refused=r"write selectinload\(\) in place of contains_eager\(\)",
    ),
    "contains_eager of both": Shape(
        sa.select(Team, Member)
        .join(Team.members)
        .options(orm.contains_eager(Team.members))
        .order_by(Team.id, *MEMBER_ORDER),
        refused=r"write selectinload\(\) in place of contains_eager\(\)",
    ),
    "an alias": Shape(sa.select(Again).order_by(Again.name, Again.id)),
    "a subquery": Shape(sa.select(sa.select(TEAMS.c.id, TEAMS.c.name).where(TEAMS.c.id > 1).subquery())),
    "a subquery of a union": Shape(
        sa.select(sa.union_all(sa.select(TEAMS.c.id), sa.select(TEAMS.c.id).where(TEAMS.c.id > 2)).subquery()),
        itself,
    ),
    "a Query": Shape(orm.Query([Team]).order_by(Team.name, Team.id)),
    "a Query of a join to many": Shape(orm.Query([Team]).join(Member).order_by(Team.id)),
    "a Query of a join to many, ordered": Shape(
        orm.Query([Team]).join(Member).order_by(Team.id, Member.number, Member.color)
    ),
    "a Query of a join to one": Shape(orm.Query([Member]).join(Team).order_by(Team.name, *MEMBER_ORDER)),
    "a Query of both of a join": Shape(orm.Query([Team, Member]).join(Member).order_by(Team.id, *MEMBER_ORDER)),
    "a Query of a column": Shape(orm.Query([Team.name]).order_by(Team.id)),
    "a Query of a union": Shape(
        orm.Query([Team]).filter(Team.id < 2).union(orm.Query([Team]).filter(Team.id > 2)).order_by(Team.id),
        refused=r"a Query after union\(\), .* select from the union",
    ),
    "a Query of a union of columns": Shape(
        orm.Query([Team.id]).union(orm.Query([Team.id])), refused="cannot be read by key"
    ),
    "an alias of a union": Shape(
        sa.select(orm.aliased(Team, sa.union(sa.select(Team), sa.select(Team).where(Team.id > 1)).subquery())), itself
    ),
    "a Query with contains_eager": Shape(
        orm.Query([Team]).join(Team.members).options(orm.contains_eager(Team.members)).order_by(*TEAM_ORDER)
    ),
}

rows_of_teams = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from(Color),
        st.lists(st.tuples(st.sampled_from(Color), st.integers(0, 3)), max_size=4),
    ),
    max_size=5,
)


@pytest.fixture(scope="module")
def engine() -> Iterator[sa.Engine]:
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def fill(engine: sa.Engine, teams: list[Any]) -> None:
    letters = "bAcBaC"
    taken: set[Any] = set()
    with orm.Session(engine) as session, session.begin():
        session.execute(sa.delete(Member))
        session.execute(sa.delete(Team))
        for number, (name, color, members) in enumerate(teams):
            session.add(
                Team(
                    id=number,
                    name=name,
                    color=color,
                    code=Code(7 * number % 11),
                    uuid=UUID(int=9 ** (20 + number)),
                    folded=letters[number],
                    extra={"number": number},
                )
            )
            new = [key for key in dict.fromkeys(members) if key not in taken]
            taken.update(new)
            session.add_all(Member(color=key[0], number=key[1], team_id=number) for key in new)
        left = [(color, number) for color in Color for number in range(2) if (color, number) not in taken]
        session.add_all(Member(color=color, number=number) for color, number in left[:3])


def seen(row: Any) -> Any:
    """Return what the task sees of a row, with the collections that were loaded with it; their order is not defined."""
    if isinstance(row, Base):
        collections = {
            name: tuple(sorted(map(seen, value), key=str))
            for name, value in vars(row).items()
            if isinstance(value, list)
        }
        return type(row).__name__, sa.inspect(row).identity, tuple(sorted(collections.items()))
    return tuple(map(seen, row)) if isinstance(row, sa.Row) else row


def plain(engine: sa.Engine, select: Any) -> list[Any]:
    with orm.Session(engine) as session:
        if isinstance(select, orm.Query):
            return list(map(seen, select.with_session(session)))
        run = session.scalars if len(select.column_descriptions) == 1 else session.execute
        try:
            return list(map(seen, run(select)))
        except sa.exc.InvalidRequestError as exc:
            if "unique() method must be invoked" not in str(exc):
                raise
            session.expunge_all()
            return list(map(seen, run(select).unique()))


def with_session(select: Any, session: orm.Session) -> Any:
    return select.with_session(session) if isinstance(select, orm.Query) else select


def by_key(engine: sa.Engine, select: Any, chunk: int, cursor: Any) -> list[tuple[Any, Any]]:
    """Return rows as a new execution sees them, each with its saved cursor."""
    with orm.Session(engine) as session:
        reader = opener("rows", select_rows(session, with_session(select, session), chunk=chunk))().reader
        return [(seen(row), saved(after)) for row, after in reader.resume(cursor, reader.kind, None)]


THREE = [
    ("a", Color.RED, [(Color.RED, 0), (Color.BLUE, 1)]),
    ("b", Color.BLUE, [(Color.BLUE, 2)]),
    ("a", Color.RED, []),
]


@pytest.mark.parametrize(
    ("select", "cursor", "rest"),
    [
        (sa.select(Team).order_by(Team.uuid), UUID(int=9**20), 2),
        (sa.select(Team).order_by(Team.name, Team.uuid), ("a", UUID(int=9**22)), 1),
        (
            sa.select(Team)
            .join(Team.members)
            .options(orm.contains_eager(Team.members))
            .order_by(Team.id, Member.number, Member.color),
            (0, 0, "RED"),
            1,
        ),
    ],
)
def test_cursors_of_release_0_1(engine: sa.Engine, select: Any, cursor: Any, rest: int) -> None:
    """It saved values as the task sees them, with all columns of the order, and no kind."""
    fill(engine, THREE)
    expected = plain(engine, select)
    with orm.Session(engine) as session:
        reader = opener("rows", select_rows(session, select))().reader
        assert [seen(row) for row, _ in reader.resume(cursor, None, None)] == expected[-rest:]


def test_a_member_of_an_enum_that_is_gone(engine: sa.Engine) -> None:
    with orm.Session(engine) as session:
        source = select_rows(session, sa.select(Member).order_by(*MEMBER_ORDER))
        with pytest.raises(InvalidStepError, match="cannot be read from 'PINK': Color has no such member now"):
            list(source.read(("PINK", 1)))


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_rows_of_a_chunk_are_dropped(engine: sa.Engine, chunk: int) -> None:
    """Memory does not grow with the position."""
    fill(engine, [("a", Color.RED, [])] * 5)
    found: list[weakref.ref[Any]] = []
    with orm.Session(engine) as session:
        for row, _ in select_rows(session, sa.select(Team), chunk=chunk).read(None):
            assert sum(ref() is not None for ref in found) <= chunk + 1
            found.append(weakref.ref(row))
    assert len(found) == 5


def test_enums_of_mysql_are_refused(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It orders them by number, and compares them as texts."""
    monkeypatch.setattr(engine.dialect, "name", "mysql")
    with orm.Session(engine) as session:
        source = select_rows(session, sa.select(Team).order_by(Team.color, Team.id))
        with pytest.raises(InvalidStepError, match=r"by teams.color \(Enum\): MySQL orders"):
            next(source.read(None))


def test_locks_of_a_session_of_the_loop_are_refused(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_continuations.sources.sqlalchemy._factory", orm.sessionmaker(engine))
    with pytest.raises(InvalidStepError, match=r"with_for_update\(\) locks rows until a transaction ends"):
        from_select(sa.select(Team).with_for_update())


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=4, deadline=None)
@given(teams=rows_of_teams, chunk=st.integers(1, 5))
def test_a_select_by_key_has_the_rows_of_the_plain_select(
    engine: sa.Engine, name: str, teams: list[Any], chunk: int
) -> None:
    """From every position on; a select that repeats a key is refused."""
    shape = SHAPES[name]
    fill(engine, teams)
    if shape.refused is not None:
        with orm.Session(engine) as session, pytest.raises(InvalidStepError, match=shape.refused):
            select_rows(session, shape.select)
        return
    expected = plain(engine, shape.select)
    keys = [] if shape.key is None else list(map(shape.key, expected))
    if len(set(keys)) < len(keys):
        done: list[Any] = []
        with orm.Session(engine) as session, pytest.raises(InvalidStepError, match="two rows have the key"):
            done.extend(shape.key(seen(row)) for row, _ in select_rows(session, shape.select, chunk=chunk).read(None))
        assert all(keys.count(key) == 1 for key in done)  # a stop between two rows of one key would lose the second
        return
    pairs = by_key(engine, shape.select, chunk, None)
    assert [row for row, _ in pairs] == expected
    with orm.Session(engine) as session:
        assert select_rows(session, with_session(shape.select, session)).count() == len(expected)
    for done, (_, cursor) in enumerate(pairs, 1):
        assert by_key(engine, shape.select, chunk, cursor) == pairs[done:]
