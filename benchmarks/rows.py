"""The cost of reading a table by key: compared with a plain loop, and ten million rows in."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import date
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from benchmarks.items import Quiet
from benchmarks.report import Figure, Row
from benchmarks.timing import interleave, median_ratio
from celery_continuations.core.iteration import Iteration
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.sources import opener
from celery_continuations.sources.sqlalchemy import select_rows
from tests.support.servers import start_postgres

__all__ = ["measure"]

CHUNK = 2000
ROWS = 20_000
FAR = 10_000_000


class Base(orm.DeclarativeBase):
    """The declarative base of the one entity."""


class Customer(Base):
    """The same table as Django's benchmarks_customer."""

    __tablename__ = "benchmarks_customer"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    email: orm.Mapped[str]
    phone: orm.Mapped[str]
    street: orm.Mapped[str]
    city: orm.Mapped[str]
    country: orm.Mapped[str]
    language: orm.Mapped[str]
    visits: orm.Mapped[int]
    points: orm.Mapped[int]
    is_active: orm.Mapped[bool]
    joined: orm.Mapped[date]


_FILL = """
WITH RECURSIVE numbers(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < ?)
INSERT INTO benchmarks_customer
SELECT
    number, 'Customer ' || number, 'customer' || number || '@example.org', '+49 30 ' || number,
    number || ' Main Street', 'Berlin', 'DE', 'de', number % 100, number, 1, '2026-01-31'
FROM numbers
"""


def measure(quick: bool) -> Figure:
    """Alternate between both loops over the rows; then read the first chunk at the start and far in."""
    with tempfile.TemporaryDirectory() as folder, _postgres() as port:
        path = Path(folder) / "rows"
        engine = sa.create_engine(f"sqlite:///{path}")
        Base.metadata.create_all(engine)
        model = _model(path, port)
        with orm.Session(engine) as session:
            _fill(path, ROWS)
            _copy(model)
            rounds = 7 if quick else 30
            rows = [
                _django_loop(model, "postgresql", rounds),
                _django_loop(model, "default", rounds),
                _sqlalchemy_loop(session, rounds),
            ]
            far = FAR // 10 if quick else FAR
            _fill(path, far)
            rows += [
                _resumption("queryset", partial(_queryset, model), far, rounds),
                _resumption("select", partial(select_rows, session, sa.select(Customer)), far, rounds),
            ]
        engine.dispose()
    return Figure(
        "reading a table by key",
        f"SQLite where nothing is said, twelve columns, chunks of {CHUNK:,}; {ROWS:,} rows to a loop; medians.",
        rows,
    )


def _fill(path: Path, count: int) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM benchmarks_customer")
        connection.execute(_FILL, [count])


@contextmanager
def _postgres() -> Iterator[int]:
    """A PostgreSQL server of its own; its port."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)  # the server has a user of its own
    (folder / "postgres").mkdir()
    server = start_postgres(folder / "postgres")
    try:
        assert server.port is not None
        yield server.port
    finally:
        server.process.send_signal(signal.SIGINT)  # SIGTERM would wait for clients
        server.end(timeout=10)
        shutil.rmtree(folder)


def _copy(model: Any) -> None:
    """Copy the rows to PostgreSQL."""
    from django.db import connections

    with connections["postgresql"].schema_editor() as editor:
        editor.create_model(model)
    model.objects.using("postgresql").bulk_create(model.objects.all(), batch_size=CHUNK)
    with connections["postgresql"].cursor() as cursor:
        cursor.execute("ANALYZE")  # as autovacuum does; otherwise the index is not used


def _model(path: Path, port: int) -> Any:
    """Return the model of the table, in a Django project of its own."""
    import django
    from django.conf import settings

    databases = {
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)},
        "postgresql": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": "127.0.0.1",
            "PORT": port,
            "USER": "test",
            "NAME": "postgres",
        },
    }
    settings.configure(DATABASES=databases, DEFAULT_AUTO_FIELD="django.db.models.BigAutoField")
    django.setup()
    from django.db import models

    texts = ("name", "email", "phone", "street", "city", "country", "language")
    fields: dict[str, Any] = {
        **{name: models.TextField() for name in texts},
        "visits": models.IntegerField(),
        "points": models.IntegerField(),
        "is_active": models.BooleanField(),
        "joined": models.DateField(),
    }
    meta = type("Meta", (), {"app_label": "benchmarks"})
    return type("Customer", (models.Model,), {"__module__": __name__, "Meta": meta, **fields})


def _queryset(model: Any, alias: str = "default") -> Any:
    from celery_continuations.sources.django import query_rows

    return query_rows(model.objects.using(alias), chunk=CHUNK)


# -- loops


def _django_loop(model: Any, alias: str, rounds: int) -> Row:
    def plain() -> Iterator[Any]:
        return iter(model.objects.using(alias).order_by("pk").iterator(chunk_size=CHUNK))

    what = "iterate over a queryset" + (", PostgreSQL" if alias == "postgresql" else "")
    return _loops(what, plain, "queryset.iterator()", partial(_queryset, model, alias), rounds, 1.05)


def _sqlalchemy_loop(session: orm.Session, rounds: int) -> Row:
    def plain() -> Iterator[Any]:
        return iter(session.scalars(sa.select(Customer).order_by(Customer.id).execution_options(yield_per=CHUNK)))

    source = partial(select_rows, session, sa.select(Customer), chunk=CHUNK)
    return _loops("iterate over a select", plain, "scalars(), yield_per", source, rounds, 1.25)


def _loops(
    what: str,
    plain: Callable[[], Iterator[Any]],
    plain_name: str,
    source: Callable[[], Any],
    rounds: int,
    target: float,
) -> Row:
    def ours() -> None:
        run = Run("benchmark", Snapshot(executions=1), Quiet())
        for _ in run.declare(Iteration(run, "rows", opener("rows", source()))):
            pass

    def bare() -> None:
        for _ in plain():
            pass

    taken = interleave({"bare": bare, "ours": ours}, rounds)
    ratio = median_ratio(taken["ours"], taken["bare"])
    return Row(
        what,
        f"{median(taken['ours']) / ROWS * 1e6:.2f} µs a row",
        f"{median(taken['bare']) / ROWS * 1e6:.2f} µs {plain_name}",
        f"{ratio:.3f} x",
        f"{target} x",
        ratio <= target,
    )


# -- resuming


def _resumption(what: str, source: Callable[[], Any], far: int, rounds: int) -> Row:
    def start_at(cursor: int | None) -> None:
        for _ in islice(source().read(cursor), CHUNK):
            pass

    taken = interleave({"first": partial(start_at, None), "far": partial(start_at, far - 2 * CHUNK)}, rounds)
    ratio = median_ratio(taken["far"], taken["first"])
    return Row(
        f"{what}: from row {far:,} on",
        f"{median(taken['far']) * 1000:.2f} ms for {CHUNK:,} rows",
        f"{median(taken['first']) * 1000:.2f} ms from row 1 on",
        f"{ratio:.2f} x",
        "2 x",
        ratio <= 2,
    )
