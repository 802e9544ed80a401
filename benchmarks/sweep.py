"""The cost of a sweep's scan among many records that do not concern it."""

from __future__ import annotations

import uuid
from functools import partial
from statistics import median

import psycopg
from celery import Celery

from benchmarks.more_servers import private_postgres
from benchmarks.report import Figure, Row
from benchmarks.servers import connect, private_site
from benchmarks.timing import interleave, median_ratio
from celery_continuations.stores import Fence, Status, Store, Update
from celery_continuations.stores.database import DatabaseStore
from celery_continuations.stores.redis import RedisStore
from celery_continuations.worker.sweeper import Sweeper

__all__ = ["measure"]

TARGET = 2.0
SECONDS = 0.050
FEW = 100

# Live workers, each of which owns some records.
WORKERS, OWNED = 4, 2

WAITING = '{"version":1,"current":["approval",null],"executions":1,"waiting":["delivery",null,"approval"]}'
SNAPSHOT = '{"version":1,"current":["import",500],"executions":1,"progress":[500,10000]}'
MESSAGE = "m" * 900


def measure(quick: bool) -> Figure:
    """Fill two stores of a kind, one with few records and one with many, and scan them alternately."""
    many = 10_000 if quick else 100_000
    rounds = 40 if quick else 200
    with private_site() as site, private_postgres() as url:
        redis = [RedisStore(connect(site.url.removesuffix("/0") + f"/{number}"), "benchmark") for number in (1, 2)]
        postgres = [DatabaseStore(_new_database(url, name), "benchmark") for name in ("few", "many")]
        waiting = [
            RedisStore(connect(site.url.removesuffix("/0") + "/3"), "benchmark"),
            DatabaseStore(_new_database(url, "waiting"), "benchmark"),
        ]
        for small, large in (redis, postgres):
            _fill(small, FEW)
            _fill(large, many)
        for store in waiting:
            _fill_with_waiting(store, many)
        rows = [
            _row("Redis", *redis, rounds, TARGET),
            _row("PostgreSQL, before its first ANALYZE", *postgres, rounds),
        ]
        for name in ("few", "many", "waiting"):
            _analyze(url, name)
        rows.insert(1, _row("PostgreSQL", *postgres, rounds, TARGET))
        rows += [
            _whole_sweep(f"{kind}, a whole sweep: {many:,} wait", store, rounds)
            for kind, store in zip(("Redis", "PostgreSQL"), waiting, strict=True)
        ]
        for store in (*redis, *postgres, *waiting):
            store.close()
    return Figure(
        f"one look of a sweep: {many:,} records beside {FEW} records",
        f"Medians of {rounds} interleaved rounds. Half of the records have ended, the others are queued for later; "
        f"in addition, {WORKERS} workers own {OWNED} records each. Autovacuum would ANALYZE within minutes. Of the "
        "whole sweeps none of the waiting tasks is due, every other one has no timeout, and the longest counts.",
        rows,
    )


def _new_database(url: str, name: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        # otherwise timing would decide which row has had its ANALYZE
        connection.execute("ALTER SYSTEM SET autovacuum = off")
        connection.execute("SELECT pg_reload_conf()")
    return url.replace("postgresql:", "postgresql+psycopg:").removesuffix("/postgres") + f"/{name}"


def _analyze(url: str, name: str) -> None:
    """Do what autovacuum would eventually do."""
    with psycopg.connect(url.removesuffix("/postgres") + f"/{name}", autocommit=True) as connection:
        connection.execute("ANALYZE")


def _fill(store: Store, count: int) -> None:
    for number in range(WORKERS):
        store.renew(f"worker{number}", 3600)
        for _ in range(OWNED):
            owner = f"worker{number}/1.1/{uuid.uuid4().hex[:6]}"
            store.compare_and_swap(str(uuid.uuid4()), None, Update(Fence(1, Status.RUNNING, owner), SNAPSHOT, MESSAGE))
    for number in range(count):
        if number % 2:
            store.compare_and_swap(
                str(uuid.uuid4()), None, Update(Fence(1, Status.DONE), SNAPSHOT, "", "", expires_in=86_400)
            )
        else:
            store.compare_and_swap(
                str(uuid.uuid4()), None, Update(Fence(1, Status.QUEUED), SNAPSHOT, MESSAGE, due_in=3600)
            )


def _fill_with_waiting(store: Store, count: int) -> None:
    _fill(store, 0)
    for number in range(count):
        due_in = 3600 + number if number % 2 else None
        waiting = Update(Fence(1, Status.WAITING), WAITING, MESSAGE, due_in=due_in)
        store.compare_and_swap(str(uuid.uuid4()), None, waiting)


def _whole_sweep(what: str, store: Store, rounds: int) -> Row:
    app = Celery("benchmark", broker="memory://", set_as_current=False)
    sweeper = Sweeper(app, store, "worker0", lambda _: True)
    taken = interleave({"sweep": lambda: _swept(sweeper)}, rounds)["sweep"]
    return Row(
        what,
        f"{max(taken) * 1e3:.2f} ms",
        f"{median(taken) * 1e3:.2f} ms median",
        "",
        f"at most {SECONDS * 1e3:.0f} ms",
        max(taken) <= SECONDS,
    )


def _swept(sweeper: Sweeper) -> None:
    if sweeper.sweep(lambda: True).due:
        raise AssertionError("one is due")


def _row(kind: str, small: Store, large: Store, rounds: int, target: float | None = None) -> Row:
    for store in (small, large):
        _look(store)  # connections and caches
    taken = interleave({"few": partial(_look, small), "many": partial(_look, large)}, rounds)
    ratio = median_ratio(taken["many"], taken["few"])
    return Row(
        kind,
        f"{median(taken['many']) * 1e6:.0f} us",
        f"{median(taken['few']) * 1e6:.0f} us",
        f"x {ratio:.2f}",
        f"x {target:.0f}" if target else "",
        ratio <= target if target else None,
    )


def _look(store: Store) -> None:
    scan = store.scan("worker0")
    if (len(scan.leases), len(scan.due), len(scan.owned)) != (WORKERS, 0, OWNED):
        raise AssertionError(f"unexpected: {scan}")
