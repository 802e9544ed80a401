"""A disturbed run leaves nothing open: neither sources nor database sessions, with no help of the collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.pool import QueuePool

from celery_continuations.sources import nested, throttled
from celery_continuations.sources import sqlalchemy as sqlalchemy_sources
from celery_continuations.testing import assert_resumable

pytestmark = pytest.mark.exhaustive


class Base(orm.DeclarativeBase):
    pass


class Poem(Base):
    __tablename__ = "poem"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    """Its pool has room for two sessions; whatever stays open makes the next one fail."""
    engine = sa.create_engine(
        f"sqlite:///{tmp_path}/db", poolclass=QueuePool, pool_size=1, max_overflow=1, pool_timeout=0.01
    )
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session, session.begin():
        session.add_all(Poem(id=number) for number in range(1, 9))
    monkeypatch.setattr(sqlalchemy_sources, "_factory", orm.sessionmaker(engine))
    gc.disable()
    yield engine
    gc.enable()
    engine.dispose()


def out(engine: sa.Engine) -> int:
    pool: Any = engine.pool
    return int(pool.checkedout())


def plain(poems: Any) -> Any:
    return poems


def within(poems: Any) -> Any:
    return nested([1, 2], lambda number: poems)


def busy(poems: Any) -> Any:
    asked: list[int] = []
    return throttled(poems, lambda: asked.append(1) or len(asked) % 3 == 0, backoff=1)


@pytest.mark.parametrize("wrap", [plain, within, busy])
@pytest.mark.parametrize("ends", ["end", "break", "error", "caught"])
def test_disturbed_runs(task: Any, engine: sa.Engine, wrap: Any, ends: str) -> None:
    seen: set[Any] = set()
    failed: list[int] = []

    def read(self: Any) -> str:
        poems = wrap(sa.select(Poem).order_by(Poem.id))
        if ends == "caught":
            try:
                for _ in self.iterate("poems", poems):
                    raise KeyError
            except KeyError:
                pass
            return str(self.step("after", lambda: "after"))
        for place, item in enumerate(self.iterate("poems", poems)):
            seen.add(item.id if wrap is not within else (item[0], item[1].id))
            if ends == "break" and len(seen) > 4:
                break
            if ends == "error" and place == 2 and not failed:
                failed.append(1)
                raise ConnectionError
        return str(self.step("after", lambda: "after"))

    def setup() -> None:
        assert out(engine) == 0
        seen.clear()
        failed.clear()

    assert_resumable(task(read), setup=setup, check=lambda: len(seen) if ends in ("end", "error") else 0, seconds=None)
    assert out(engine) == 0
