"""Querysets and selects, read by key."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import django
import pytest
import sqlalchemy as sa
from django.db.models import Count, F, Window
from django.db.models.functions import Lower, RowNumber
from django.db.models.sql.compiler import SQLCompiler
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import orm

from celery_continuations import InvalidStepError
from celery_continuations.sources import batched, nested, opener, opening, throttled
from celery_continuations.sources.django import query_rows
from celery_continuations.sources.sqlalchemy import from_select, select_rows, sessions
from tests.support.keyed_properties import resumes_everywhere, saved, sees_what_comes_after
from tests.support.tables import KEYS, DjangoTable, SQLAlchemyTable


@pytest.fixture(scope="module")
def session() -> Iterator[orm.Session]:
    engine = sa.create_engine("sqlite://")
    with orm.Session(engine) as session:
        yield session
    engine.dispose()


DJANGO_KINDS = [kind for kind in KEYS if kind != "composite" or django.VERSION >= (5, 2)]
# SQLite has no decimals and no time zones: with SQLAlchemy, those are for PostgreSQL.
SQLALCHEMY_KINDS = ["int", "uuid", "date", "str", "composite"]


@pytest.fixture(
    scope="module",
    params=[*(f"django {kind}" for kind in DJANGO_KINDS), *(f"sqlalchemy {kind}" for kind in SQLALCHEMY_KINDS)],
)
def kind_and_table(request: pytest.FixtureRequest, session: orm.Session) -> tuple[str, Any]:
    library, kind = request.param.split()
    if library == "sqlalchemy":
        return kind, SQLAlchemyTable(kind, session)
    return kind, DjangoTable(kind)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rows_resume_at_every_position(kind_and_table: tuple[str, Any], data: st.DataObject) -> None:
    """Multi-column, composite, time-zone and date keys, up and down, by rows and batches."""
    kind, table = kind_and_table
    resumes_everywhere(table, kind, data)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rows_that_come_and_go_meanwhile(kind_and_table: tuple[str, Any], data: st.DataObject) -> None:
    kind, table = kind_and_table
    sees_what_comes_after(table, kind, data)


@pytest.mark.parametrize("make", [DjangoTable, SQLAlchemyTable])
def test_rows_without_an_order_come_in_batches(make: Any, session: orm.Session) -> None:
    """Ten records, unordered, by threes: the last batch has one."""
    table = make("int", session) if make is SQLAlchemyTable else make("int")
    table.clear()
    table.insert([7, 3, 9, 1, 0, 2, 8, 4, 6, 5])
    read, total = opener("rows", table.source(4), batch=3)().reader.read, None
    batches = [[row.key for row in rows] for rows, _ in read(None)]
    assert batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert total is None  # counting a table takes as long as reading it


# -- Django


@pytest.fixture
def models() -> Iterator[Any]:
    from tests.support import django_models

    django_models.create_tables()
    yield django_models
    for model in (django_models.Book, django_models.Author, django_models.Untidy):
        model.objects.all().delete()


@pytest.fixture
def books(models: Any) -> Any:
    """Nine books of three authors, two of them at each moment."""
    authors = models.Author.objects.bulk_create(models.Author(id=one, name=name) for one, name in enumerate("abc"))
    models.Book.objects.bulk_create(
        models.Book(
            id=number,
            created=datetime(2026, 1, 1 + number // 2, tzinfo=timezone.utc),
            author=authors[number % 3],
            number=number // 3,
            shelf=number % 2,
        )
        for number in range(9)
    )
    return models.Book.objects.all()


def resumed(source: Any) -> list[Any]:
    """All rows, after each of which the others are read as well."""
    pairs = list(source.read(None))
    rows = [row for row, _ in pairs]
    for place, (_, cursor) in enumerate(pairs, 1):
        assert [row for row, _ in source.read(saved(cursor))] == rows[place:]
    return rows


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "order",
    [
        ("pk",),
        ("-pk",),
        ("created", "id"),
        ("-created", "-pk"),
        ("-created", "id"),
        ("shelf", "-created", "id"),
        ("author_id", "-number"),
        ("number", "shelf", "author_id"),
        (F("created").desc(), F("id")),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_a_queryset_that_is_ordered_by_a_unique_key(books: Any, order: tuple[Any, ...], chunk: int) -> None:
    query = books.order_by(*order)
    assert resumed(query_rows(query, chunk=chunk)) == list(query)
    assert resumed(query_rows(query.reverse(), chunk=chunk)) == list(query.reverse())


@pytest.mark.parametrize(
    ("order", "problem"),
    [
        (("created",), "its order created is not a unique key: rows can share the same place in it"),
        (("author",), "'author' is not a column of its table; write author_id for its key"),
        (("author_id", "shelf"), "rows can share the same place"),
        (("shelf",), "rows can share the same place"),
        (("number", "shelf"), "rows can share the same place"),
        (("author__name", "id"), "'author__name' is not a column of its table"),
        (("note", "id"), "note can be NULL"),
        (("?",), "is not a column of its table"),
        ((Lower("note"), "id"), "is not a column"),
        (("twice",), "'twice' is not a column of its table"),
        (("id", "pk"), "it has a column twice"),
    ],
)
def test_a_queryset_whose_order_is_not_the_keys(books: Any, order: tuple[Any, ...], problem: str) -> None:
    """An ordered query is rejected where a key order is needed, with the reason and what to write."""
    with pytest.raises(InvalidStepError, match=re.escape(problem)) as raised:
        query_rows(books.annotate(twice=F("number") * 2).order_by(*order))
    assert 'Write .order_by("pk"), or an order of columns that ends with the primary key' in str(raised.value)


def test_the_order_of_a_model_counts(models: Any) -> None:
    models.Author.objects.bulk_create(models.Author(name=name) for name in "bca")
    assert [author.name for author in resumed(query_rows(models.Author.objects))] == ["c", "b", "a"]
    with pytest.raises(InvalidStepError, match=r"the order of rows\.Untidy itself is not a unique key"):
        query_rows(models.Untidy.objects.all())
    assert list(query_rows(models.Untidy.objects.order_by("pk")).read(None)) == []
    with pytest.raises(InvalidStepError, match="nickname can be NULL"):
        query_rows(models.Author.objects.order_by("nickname"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda query: query[:5], "it is sliced"),
        (lambda query: query.union(query), r"it was made by union\(\), which accepts no condition"),
        (lambda query: query.distinct("shelf"), r"distinct\(\) of single columns"),
        (lambda query: query.values("shelf").annotate(Count("id")), "its rows are groups"),
        (lambda query: query.annotate(place=Window(RowNumber())), "a window function"),
        (lambda query: query.order_by("created", "id").defer("created"), "created is deferred"),
        (lambda query: query.order_by("created", "id").only("number"), "created is deferred"),
        (lambda query: query.values("created"), "its values lack id; add that column"),
        (lambda query: query.values_list("created", flat=True), "its values lack id"),
        (lambda query: query.dates("created", "day"), "cannot be read by key"),
        (lambda query: [1], r"query_rows takes a queryset, not \[1\]"),
    ],
)
def test_a_queryset_that_cannot_be_read_by_key(books: Any, change: Any, problem: str) -> None:
    with pytest.raises(InvalidStepError, match=problem):
        query_rows(change(books))


@pytest.mark.parametrize(
    "change",
    [
        lambda query: query.values("created", "id"),
        lambda query: query.values("number", "pk"),
        lambda query: query.values(),
        lambda query: query.values_list("created", "pk"),
        lambda query: query.values_list(),
        lambda query: query.extra(select={"left": "100 - id"}).values_list(),
        lambda query: query.annotate(left=100 - F("id")).values_list(),
        lambda query: query.values_list("id", flat=True),
        lambda query: query.values_list("number", "id", named=True),
        lambda query: query.order_by("author_id", "number").values("author", "number"),
        lambda query: query.only("number"),
        lambda query: query.defer("number"),
        lambda query: query.annotate(count=Count("author")).filter(count=1),
        lambda query: query.filter(author__name__in="ab").select_related("author"),
        lambda query: query.distinct(),
        lambda query: query.none(),
    ],
)
def test_a_queryset_of_whatever_rows(books: Any, change: Any) -> None:
    query = change(books)
    found = resumed(query_rows(query, chunk=2))
    assert found == list(query if query.ordered else query.order_by("pk"))


def test_managers(books: Any) -> None:
    author = books[0].author
    assert [
        opening(manager)().read(4).__next__()[1]
        for manager in (type(author).book_set.rel.related_model.objects, author.book_set)
    ] == [5, 6]


def test_rows_that_a_join_repeats(models: Any, books: Any) -> None:
    """Their places would be the same: a chunk that ends between them would lose some."""
    query = models.Author.objects.filter(book__number__gte=0).order_by("pk")
    for chunk in range(1, 10):
        with pytest.raises(InvalidStepError, match=r"two rows have the key 0 \(id\)"):
            list(query_rows(query, chunk=chunk).read(None))
    assert resumed(query_rows(query.distinct(), chunk=2)) == list(models.Author.objects.order_by("pk"))


def test_a_model_that_inherits_its_key(models: Any, books: Any) -> None:
    author = models.Author.objects.get(name="a")
    for number in range(5):
        models.Novel.objects.create(
            created=datetime(2026, 1, 1, tzinfo=timezone.utc), author=author, number=100 + number
        )
    for order in (["pk"], ["-pk"], ["-book_ptr_id"], ["created", "id"], ["number", "pk"]):
        query = models.Novel.objects.order_by(*order)
        assert resumed(query_rows(query, chunk=2)) == list(query)


@pytest.mark.parametrize("cursor", [(1,), [1], (1, 2)])
def test_a_cursor_that_is_not_a_key_is_refused(books: Any, cursor: Any) -> None:
    with pytest.raises(InvalidStepError, match="rows by id cannot be read from"):
        query_rows(books).read(cursor)
    if cursor != (1, 2):
        with pytest.raises(InvalidStepError, match=r"rows by \(created, id\) cannot be read from"):
            query_rows(books.order_by("created", "id")).read(cursor)


@pytest.mark.parametrize("chunk", [0, -1, 1.5, True, None])
def test_a_chunk_that_is_none(books: Any, chunk: Any) -> None:
    with pytest.raises(InvalidStepError, match="chunk must be an int of 1 or more"):
        query_rows(books, chunk=chunk)


def test_a_query_for_each_chunk_by_key(books: Any) -> None:
    """By key, never by OFFSET; and the queryset that was passed keeps no rows."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(
        connection,
    ) as captured:
        assert len(list(query_rows(books.prefetch_related("author"), chunk=5).read(None))) == 9
    rows = [query["sql"] for query in captured if '"rows_book"' in query["sql"]]
    assert len(rows) == 3
    assert len(captured) == 5  # two of them for the authors of a chunk
    assert not any("OFFSET" in sql for sql in rows)
    assert ['"id" > ' in sql for sql in rows] == [False, True, True]
    assert books._result_cache is None


@pytest.mark.parametrize("around", [lambda query: query, lambda query: query.prefetch_related("author")])
def test_chunks_share_what_django_compiles(books: Any, around: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the first one and for those after a cursor; what is compiled of one reading is none of another's."""
    compiled: list[Any] = []
    as_sql = SQLCompiler.as_sql

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        compiled.extend([self] if self.query.model is books.model else [])
        return as_sql(self, *args, **options)

    monkeypatch.setattr(SQLCompiler, "as_sql", noted)
    source = query_rows(around(books.filter(shelf__lt=2, id__gte=0).order_by("id")), chunk=2)
    one, other = source.read(None), source.read(None)
    rows = [row.id for pair in zip(one, other, strict=True) for row, _ in pair]
    assert rows == [number for number in range(9) for _ in "ab"]
    assert len(compiled) == 4


def test_rows_of_a_chunk_are_dropped(books: Any) -> None:
    """Memory does not grow with the position."""
    seen: list[weakref.ref[Any]] = []
    for row, _ in query_rows(books, chunk=2).read(None):
        assert sum(ref() is not None for ref in seen) <= 2
        seen.append(weakref.ref(row))


@pytest.mark.parametrize("batch", [None, 2])
def test_a_task_resumes_in_a_queryset(worker: Any, task: Any, books: Any, batch: int | None) -> None:
    done: list[int] = []

    def body(self: Any) -> None:
        for found in self.iterate("books", query_rows(books.order_by("created", "id"), chunk=3), batch=batch):
            done.extend(book.id for book in (found if batch else [found]))
            if len(done) == 4:
                books.filter(id=3).delete()  # the very one that the cursor is at
                worker.stop()

    result = task(body).apply_async()
    worker.drain()
    assert (result.state, done) == ("SUCCESS", list(range(9)))
    assert len(worker.deliveries) == 2


def test_querysets_are_recognised_at_every_depth(worker: Any, task: Any, books: Any, models: Any) -> None:
    """In batches of pairs, interrupted after each."""
    authors = models.Author.objects.order_by("-pk")
    source = nested(
        throttled(authors, lambda: False, 5),
        lambda author: author.book_set.order_by("-pk").values_list("pk", flat=True),
        lambda author, book: batched(range(book % 4), 2),
    )
    seen: list[Any] = []

    def body(self: Any) -> None:
        for found in self.iterate("books", source, batch=3):
            seen.extend((author.id, book, numbers) for author, book, numbers in found)
            worker.stop()

    result = task(body).apply_async()
    worker.drain()
    expected = [
        (author.id, book.id, list(range(book.id % 4))[start : start + 2])
        for author in authors
        for book in author.book_set.order_by("-pk")
        for start in range(0, book.id % 4, 2)
    ]
    assert (result.get(), seen) == (None, expected)
    assert len(worker.deliveries) == -(-len(expected) // 3) + 1


def test_a_project_without_time_zones(books: Any) -> None:
    from django.test.utils import override_settings

    with override_settings(USE_TZ=False):
        rows = resumed(query_rows(books.order_by("created", "id"), chunk=2))
    assert [row.created.tzinfo for row in rows] == [None] * 9


# -- SQLAlchemy


class Tables(orm.DeclarativeBase):
    pass


class Writer(Tables):
    __tablename__ = "writers"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(unique=True)
    nickname: orm.Mapped[str | None] = orm.mapped_column(unique=True)
    poems: orm.Mapped[list[Poem]] = orm.relationship(back_populates="writer", order_by="Poem.id")


class Poem(Tables):
    __tablename__ = "poems"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    created: orm.Mapped[datetime]
    writer_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("writers.id"))
    number: orm.Mapped[int]
    shelf: orm.Mapped[int]
    note: orm.Mapped[str | None]
    writer: orm.Mapped[Writer] = orm.relationship(back_populates="poems")

    __table_args__ = (
        sa.UniqueConstraint("writer_id", "number"),
        sa.Index("shelf_of_some", "shelf", unique=True, sqlite_where=sa.text("note = 'alone'")),
    )


Other = orm.aliased(Poem)
POEMS = Poem.__table__
SHELVES = sa.select(Poem.shelf).subquery()


@pytest.fixture
def engine() -> Iterator[sa.Engine]:
    engine = sa.create_engine("sqlite://")
    Tables.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def poems(engine: sa.Engine) -> Iterator[orm.Session]:
    """Nine poems of three writers, two of them at each moment."""
    with orm.Session(engine) as session:
        writers = [Writer(id=one, name=name) for one, name in enumerate("abc")]
        session.add_all(
            Poem(
                id=number,
                created=datetime(2026, 1, 1 + number // 2),
                writer=writers[number % 3],
                number=number // 3,
                shelf=number % 2,
            )
            for number in range(9)
        )
        session.commit()
        yield session


@pytest.fixture
def statements(engine: sa.Engine) -> list[str]:
    """What is executed from now on."""
    found: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *args: found.append(args[2]))
    return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize(
    "select",
    [
        sa.select(Poem).order_by(Poem.id),
        sa.select(Poem).order_by(Poem.id.desc()),
        sa.select(Poem).order_by(Poem.created, Poem.id),
        sa.select(Poem).order_by(Poem.created.desc(), Poem.id.desc()),
        sa.select(Poem).order_by(Poem.created.desc(), Poem.id.asc()),
        sa.select(Poem).order_by(Poem.shelf, Poem.created.desc(), Poem.id),
        sa.select(Poem).order_by(Poem.writer_id, Poem.number.desc().nulls_last()),
        sa.select(Other).order_by(Other.created, Other.id),
        sa.select(Poem.note, Poem.created).order_by(Poem.id.desc()),
        sa.select(Poem.created).order_by(Poem.id),
        sa.select(Poem, Writer.name).join(Writer).order_by(Poem.id),
        sa.select(Writer, Poem).join(Poem).order_by(Writer.id, Poem.id),
        sa.select(Writer.name, Poem.id).join(Poem).order_by(Writer.name, Poem.id.desc()),
        sa.select(Poem).options(orm.joinedload(Poem.writer)).order_by(Poem.id),
        sa.select(Poem).order_by(Poem.id).execution_options(yield_per=3),
        sa.select(POEMS).order_by(POEMS.c.created, POEMS.c.id),
        sa.select(POEMS.c.number, POEMS.c.note).order_by(POEMS.c.id),
        sa.select(POEMS.alias()).where(sa.false()),
        sa.select(Poem.id, sa.select(sa.func.count()).select_from(Writer).scalar_subquery()).order_by(Poem.id),
        sa.select(Poem.id, sa.func.coalesce(Poem.note, "none")).order_by(Poem.id),
    ],
)
def test_a_select_that_is_ordered_by_a_unique_key(poems: orm.Session, select: Any, chunk: int) -> None:
    result = poems.execute(select)
    expected = list(result.scalars() if len(select.column_descriptions) == 1 else result)
    assert resumed(select_rows(poems, select, chunk=chunk)) == expected


def test_a_select_without_an_order_is_by_primary_key(poems: orm.Session) -> None:
    assert [poem.id for poem in resumed(select_rows(poems, sa.select(Poem), chunk=2))] == list(range(9))
    assert [row.id for row in resumed(select_rows(poems, sa.select(POEMS), chunk=2))] == list(range(9))
    joined = sa.select(POEMS.c.id).select_from(POEMS.join(Writer.__table__))
    assert resumed(select_rows(poems, joined, chunk=2)) == list(range(9))


def test_a_table_with_unique_keys_alone_is_by_the_first_that_is_never_null(engine: sa.Engine) -> None:
    """By their names: sets of constraints have another order in each process."""
    columns = [sa.Column("a", sa.Integer), *(sa.Column(name, sa.Integer, nullable=False) for name in "dbc")]
    unique = [sa.UniqueConstraint(name) for name in "dca"]
    table = sa.Table("unique_alone", sa.MetaData(), *columns, *unique, sa.Index("unique_b", "b", unique=True))
    with orm.Session(engine) as session:
        assert select_rows(session, sa.select(table)).kind == "key (unique_alone.b)"


def test_a_collection_that_is_loaded_with_its_owner(poems: orm.Session) -> None:
    select = sa.select(Writer).options(orm.joinedload(Writer.poems))
    assert [len(writer.poems) for writer in resumed(select_rows(poems, select, chunk=2))] == [3, 3, 3]


def test_a_query(poems: orm.Session) -> None:
    assert [poem.id for poem in resumed(from_select(poems.query(Poem).order_by(Poem.id.desc())))] == [*range(9)][::-1]
    assert [row.name for row in resumed(select_rows(poems, poems.query(Writer.name), chunk=2))] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("order", "problem"),
    [
        (
            (Poem.created,),
            "its order by poems.created is not a unique key: rows can share the same place in it; end it",
        ),
        ((Poem.shelf,), "end it with the primary key, poems.id"),
        ((Poem.writer_id, Poem.shelf), "rows can share the same place"),
        ((Writer.id,), "rows can share the same place"),
        ((Poem.note, Poem.id), "poems.note can be NULL"),
        ((sa.text("created"), Poem.id), "its order has 'created', which is not a column of a table"),
        (("created", Poem.id), "its order has 'created', which is not a column of a table"),
        ((sa.func.lower(Poem.note), Poem.id), "its order has 'lower(poems.note)', which is not a column"),
    ],
)
def test_a_select_whose_order_is_not_the_keys(poems: orm.Session, order: Any, problem: str) -> None:
    """An ordered query is rejected where a key order is needed, with the reason and what to write."""
    with pytest.raises(InvalidStepError, match=re.escape(problem)):
        select_rows(poems, sa.select(Poem).join(Writer).order_by(*order))


@pytest.mark.parametrize(
    ("select", "problem"),
    [
        (sa.select(sa.func.avg(Poem.id)), "an aggregate or window function"),
        (sa.select(sa.func.group_concat(Poem.note).label("notes")), "an aggregate or window function"),
        (sa.select(Poem.shelf).having(Poem.shelf > 1), "its rows are groups"),
        (sa.select(sa.literal(1)), "its table has no primary key"),
        (sa.select(Poem).limit(5), "it has a limit or offset"),
        (sa.select(Poem).offset(5), "it has a limit or offset"),
        (sa.select(Poem).slice(1, 5), "it has a limit or offset"),
        (sa.select(Poem).fetch(5), "it has a limit or offset"),
        (sa.select(Poem.shelf, sa.func.count()).group_by(Poem.shelf), "its rows are groups"),
        (sa.select(Poem.shelf).distinct(), "distinct rows of columns have no key"),
        (sa.select(sa.func.count(Poem.id)), "an aggregate or window function"),
        (sa.select(Poem, sa.func.row_number().over()), "an aggregate or window function"),
        (sa.select(Poem).union(sa.select(Poem)), "takes a select, not a CompoundSelect"),
        (sa.text("SELECT 1"), "takes a select, not a TextClause"),
        (sa.select(SHELVES), "its table has no primary key"),
        (sa.select(Writer).order_by(Writer.nickname), "writers.nickname can be NULL"),
    ],
)
def test_a_select_that_cannot_be_read_by_key(poems: orm.Session, select: Any, problem: str) -> None:
    with pytest.raises(InvalidStepError, match=problem):
        select_rows(poems, select)


def test_a_connection(engine: sa.Engine, poems: orm.Session) -> None:
    with engine.connect() as connection:
        select = sa.select(POEMS.c.number).order_by(POEMS.c.created, POEMS.c.id)
        assert resumed(select_rows(connection, select, chunk=2)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        with pytest.raises(InvalidStepError, match="a connection cannot load entities: use a session"):
            list(select_rows(connection, sa.select(Poem)).read(None))


def test_values_that_are_not_sessions_are_refused(engine: sa.Engine, poems: orm.Session) -> None:
    for wrong in (engine, orm.sessionmaker(engine), None):
        with pytest.raises(InvalidStepError, match=r"takes a session or connection, not a .*; write `with Session\("):
            select_rows(wrong, sa.select(Poem))
    for wrong in (engine, poems, None):
        with pytest.raises(InvalidStepError, match="sessions takes a function that returns a session"):
            sessions(wrong)
    for session in (poems, orm.scoped_session(lambda: poems)):
        with pytest.raises(InvalidStepError, match=r"ession: it yields its objects in no order; iterate over sel"):
            opening(session)()


@pytest.mark.parametrize("wrong", [sa.text("SELECT 1"), sa.union(sa.select(Poem.id), sa.select(Poem.id))])
def test_a_statement_that_is_not_a_select_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidStepError, match="select_rows takes a select, not a "):
        opening(wrong)()


@pytest.mark.parametrize("chunk", range(1, 10))
def test_rows_of_columns_that_a_join_repeats(poems: orm.Session, chunk: int) -> None:
    """Their places would be the same: a chunk that ends between them would lose some."""
    with pytest.raises(InvalidStepError, match=r"two rows have the key 0 \(writers.id\)"):
        list(select_rows(poems, sa.select(Writer.name, Poem.id).join(Poem), chunk=chunk).read(None))


@pytest.mark.parametrize("chunk", range(1, 10))
def test_an_entity_that_a_join_repeats(poems: orm.Session, chunk: int) -> None:
    """As often as the select says: a Query and DISTINCT yield it once."""
    repeated = sa.select(Writer).join(Poem)
    with pytest.raises(InvalidStepError, match=r"two rows have the key 0 \(writers.id\).* add .distinct\(\)"):
        list(select_rows(poems, repeated, chunk=chunk).read(None))
    for once in (repeated.distinct(), poems.query(Writer).join(Poem)):
        assert [writer.name for writer in resumed(select_rows(poems, once, chunk=chunk))] == ["a", "b", "c"]


def test_an_outer_join_that_leaves_a_key_empty(poems: orm.Session) -> None:
    select = sa.select(Writer, Poem).outerjoin(Poem).order_by(Writer.id, Poem.id)
    with pytest.raises(InvalidStepError, match="poems.id is NULL where the outer join finds nothing"):
        select_rows(poems, select)


def test_a_select_for_each_chunk_by_key(engine: sa.Engine, poems: orm.Session, statements: list[str]) -> None:
    """By key, never by OFFSET."""
    parameters = []
    sa.event.listen(engine, "before_cursor_execute", lambda *args: parameters.append(args[3]))
    assert len(list(select_rows(poems, sa.select(Poem).order_by(Poem.shelf, Poem.id), chunk=5).read(None))) == 9
    assert len(statements) == 3
    assert ["(poems.shelf, poems.id) > (?, ?)" in sql for sql in statements] == [False, True, True]
    assert [offset for *_, offset in parameters] == [0, 0, 0]  # SQLite is always told an OFFSET, the last parameter


def test_a_commit_of_each_row_costs_one_query(poems: orm.Session, statements: list[str]) -> None:
    for poem, _ in select_rows(poems, sa.select(Poem)).read(None):
        poem.note = "seen"
        poems.commit()
    selects = [sql for sql in statements if sql.startswith("SELECT")]
    assert len(selects) == 10
    assert poems.scalars(sa.select(Poem.note)).all() == ["seen"] * 9


def test_a_commit_of_each_batch_costs_one_query(poems: orm.Session, statements: list[str]) -> None:
    read = opener("poems", select_rows(poems, sa.select(Poem)), batch=3)().reader.read
    for batch, _ in read(None):
        for poem in batch:
            poem.note = "seen"
        poems.commit()
    assert len([sql for sql in statements if sql.startswith("SELECT")]) == 4


def test_sessions_that_keep_what_is_committed_read_whole_chunks(engine: sa.Engine, poems: orm.Session) -> None:
    found: list[str] = []
    with orm.Session(engine, expire_on_commit=False) as session:
        sa.event.listen(engine, "before_cursor_execute", lambda *args: found.append(args[2]))
        for _ in select_rows(session, sa.select(Poem)).read(None):
            session.commit()
    assert len(found) == 2


@pytest.mark.parametrize("end", [orm.Session.commit, orm.Session.rollback, orm.Session.expunge_all, orm.Session.close])
def test_rows_that_are_gone_when_their_turn_comes(poems: orm.Session, end: Any) -> None:
    """After what expires or detaches the rest of a chunk, it is read again."""
    seen = []
    for poem, _ in select_rows(poems, sa.select(Poem)).read(None):
        assert poem in poems
        seen.append(poem.id)
        if poem.id == 2:
            end(poems)
            poems.execute(sa.delete(Poem).where(Poem.id.in_([1, 2, 3, 5])))
            poems.commit()
    assert seen == [0, 1, 2, 4, 6, 7, 8]


def test_a_chunk_grows_again_when_nothing_expires(poems: orm.Session, statements: list[str]) -> None:
    for poem, _ in select_rows(poems, sa.select(Poem)).read(None):
        if poem.id == 0:
            poems.commit()
    assert len(statements) == 6  # of 1000 rows, then of 1, 2, 4, 8 and 16


@pytest.fixture
def no_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_continuations.sources.sqlalchemy._factory", None)


@pytest.mark.usefixtures("no_sessions")
def test_a_select_whose_session_is_unknown() -> None:
    with pytest.raises(InvalidStepError, match=r"write select_rows\(session, select\), or name once"):
        from_select(sa.select(Poem))


@pytest.mark.usefixtures("no_sessions", "poems")
def test_a_select_whose_session_is_opened_for_it(engine: sa.Engine) -> None:
    made: list[orm.Session] = []

    class Noted(orm.Session):
        closed = False

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

        def close(self) -> None:
            self.closed = True
            super().close()

    sessions(orm.sessionmaker(engine, class_=Noted))
    source = from_select(sa.select(Poem))
    assert not made
    for poem, _ in source.read(None):
        assert orm.object_session(poem) is made[0]
        assert not made[0].closed
    assert [session.closed for session in made] == [True]
    pairs = source.read(4)
    assert next(pairs)[0].id == 5
    del pairs  # like a loop that was left
    assert [session.closed for session in made] == [True, True]


@pytest.mark.usefixtures("no_sessions", "poems")
def test_selects_are_recognised_at_every_depth(worker: Any, task: Any, engine: sa.Engine) -> None:
    sessions(orm.sessionmaker(engine))
    seen: list[Any] = []

    def body(self: Any) -> None:
        writers = sa.select(Writer).order_by(Writer.name.desc())
        source = nested(writers, lambda writer: sa.select(Poem.id).where(Poem.writer_id == writer.id))
        for writer, poem in self.iterate("poems", source):
            seen.append((writer.name, poem))
            worker.stop()

    result = task(body).apply_async()
    worker.drain()
    expected = [("c", 2), ("c", 5), ("c", 8), ("b", 1), ("b", 4), ("b", 7), ("a", 0), ("a", 3), ("a", 6)]
    assert (result.get(), seen) == (None, expected)
    assert len(worker.deliveries) == 10
    gc.collect()  # what is interrupted may keep its session until then


@pytest.mark.usefixtures("no_sessions", "poems")
def test_a_scoped_session_is_left_open(engine: sa.Engine) -> None:
    scoped = orm.scoped_session(orm.sessionmaker(engine))
    sessions(scoped)
    found = [poem for poem, _ in from_select(sa.select(Poem)).read(None)]
    assert all(poem in scoped for poem in found)
    scoped.remove()


@pytest.mark.parametrize("batch", [None, 2])
def test_a_task_resumes_in_a_select(worker: Any, task: Any, poems: orm.Session, batch: int | None) -> None:
    done: list[int] = []

    def body(self: Any) -> None:
        select = sa.select(Poem).order_by(Poem.created, Poem.id)
        for found in self.iterate("poems", select_rows(poems, select, chunk=3), batch=batch):
            done.extend(poem.id for poem in (found if batch else [found]))
            if len(done) == 4:
                poems.execute(sa.delete(Poem).where(Poem.id == 3))  # the very one that the cursor is at
                poems.commit()
                worker.stop()

    result = task(body).apply_async()
    worker.drain()
    assert (result.state, done) == ("SUCCESS", list(range(9)))
    assert len(worker.deliveries) == 2
