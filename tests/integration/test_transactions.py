"""kill -9 at any time: work in ``transaction=`` takes effect exactly once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.integration.effects import effects, metadata
from tests.support.cluster import ROOT, Cluster, filesystem_conf
from tests.support.processes import LocalProcess, await_condition

KILLS = 60
COUNT = 1500


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database for this test alone."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/db"
    server: LocalProcess = request.getfixturevalue("postgres_server")
    name = f"effects{abs(hash(tmp_path))}"
    root = f"postgresql+psycopg://test@127.0.0.1:{server.port}"
    engine = sa.create_engine(f"{root}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return f"{root}/{name}"


def found(url: str) -> Counter[tuple[int, int]]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        counted = Counter((item, part) for item, part in connection.execute(sa.select(effects.c.item, effects.c.part)))
    engine.dispose()
    return counted


@pytest.mark.parametrize("way", ["session", "django", "django's store"])
def test_each_item_takes_effect_exactly_once_however_often_its_process_is_killed(url: str, way: str) -> None:
    options = {"url": url, "way": way, "count": COUNT, "kills": KILLS, "seed": 5}
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.effects", json.dumps(options)],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["killed"] >= KILLS * 0.9
    assert found(url) == Counter((item, part) for item in range(2 * COUNT + 1) for part in (1, 2))


def test_each_item_takes_effect_exactly_once_on_a_worker(
    make_cluster: Callable[..., Cluster], tmp_path: Path, url: str
) -> None:
    engine = sa.create_engine(url)
    metadata.create_all(engine)
    engine.dispose()
    cluster = make_cluster(**filesystem_conf(tmp_path), continuation_store=f"db+{url}")
    cluster.worker("-c", "2", continuation_lease=2, continuation_sweep_interval=1)
    result = cluster.send("effects", url, 200)
    killed: set[int] = set()
    for turn in range(1, 4):
        seen = await_condition(
            lambda turn=turn: [
                row for row in cluster.trace.lines("item") if int(row[2]) not in killed and int(row[1]) > 30 * turn
            ],
            "items of another process",
        )
        pid = int(seen[-1][2])
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    assert result.get(timeout=60) == 200
    assert found(url) == Counter((item, part) for item in range(200) for part in (1, 2))
    assert len(killed) == 3
