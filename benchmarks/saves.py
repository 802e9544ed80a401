"""The cost of a checkpoint that saves, durably against a kill of the worker: microseconds each."""

from __future__ import annotations

from statistics import median

from benchmarks.more_servers import private_postgres
from benchmarks.report import Figure, Row
from benchmarks.servers import Site, private_site
from benchmarks.timing import median_ratio

__all__ = ["measure", "time_saves"]

Times = dict[str, list[float]]


def measure(quick: bool) -> Figure:
    """Let a task save at every checkpoint, alternating with the bare calls."""
    rounds = 40 if quick else 250
    with private_site() as site:
        redis = time_saves(site, site.url, rounds)
        with private_postgres(fsync=True) as url:
            postgres = time_saves(site, _store(url), rounds)
        with private_postgres() as url:
            unsynced = time_saves(site, _store(url), rounds)
        sqlite = time_saves(site, f"db+sqlite:///{site.folder}/store.db", rounds)
        files = time_saves(site, f"file://{site.folder}/store", rounds)
    return Figure(
        "what a checkpoint costs that saves",
        f"Medians of {rounds} interleaved rounds in a worker's child; a snapshot of {redis['size'][0]:.0f} bytes, and "
        "in the store the message beside it. A save is OwnedRecord.save, given the snapshot's text. A full save is "
        "step.advance() with continuation_checkpoint_interval = 0: it builds the text and saves it, and is all that "
        "the task waits for. There are no sweeps meanwhile. With fsync off a commit costs PostgreSQL little, so "
        "that the difference is what the library adds; with fsync on, the default, is how it runs.",
        [
            _row("Redis, save", redis, "store", "compare and set", "EVALSHA, fenced set", 1.25),
            _row("Redis, save", redis, "store", "evalsha", "EVALSHA, return 1"),
            _row("Redis, save", redis, "store", "set", "SET"),
            _row("Redis, full save", redis, "checkpoint", "compare and set", "EVALSHA, fenced set"),
            _row("Redis, full save", redis, "checkpoint", "evalsha", "EVALSHA, return 1"),
            _row("Redis, full save", redis, "checkpoint", "set", "SET"),
            _row("PostgreSQL, save", postgres, "store", "update and commit", "UPDATE, commit()", 1.3),
            _row("PostgreSQL, save", postgres, "store", "update", "UPDATE, autocommit"),
            _row("PostgreSQL, full save", postgres, "checkpoint", "update", "UPDATE, autocommit"),
            _row("PostgreSQL without fsync, save", unsynced, "store", "update", "UPDATE, autocommit"),
            _row("PostgreSQL without fsync, save", unsynced, "store", "update and commit", "UPDATE, commit()"),
            _row("SQLite, save", sqlite, "store", "update", "UPDATE, open connection"),
            _row("SQLite, full save", sqlite, "checkpoint", "update", "UPDATE, open connection"),
            _row("filesystem, save", files, "store", "write", "write + rename"),
            _row("filesystem, full save", files, "checkpoint", "write", "write + rename"),
        ],
    )


def time_saves(site: Site, store: str, rounds: int) -> Times:
    """Time the saves to one store, in a worker that uses only this one."""
    site = site.with_conf(continuation_store=store, continuation_sweep_interval=0)
    with site.worker("steps") as worker:
        worker.wait_until_ready()
        times: Times = site.send("saves", rounds).get(timeout=300)
    return times


def _store(url: str) -> str:
    return f"db+{url.replace('://', '+psycopg://')}"


def _row(what: str, times: Times, name: str, floor: str, floor_name: str, target: float | None = None) -> Row:
    ratio = median_ratio(times[name], times[floor])
    return Row(
        what,
        f"{median(times[name]) * 1e6:.0f} us",
        f"{median(times[floor]) * 1e6:.0f} us {floor_name}",
        f"x {ratio:.2f}",
        f"x {target}" if target else "",
        ratio <= target if target else None,
    )
