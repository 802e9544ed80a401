"""What a claim costs: round trips to the store, and microseconds."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from statistics import median

from benchmarks.floors import BareRedis
from benchmarks.report import Figure, Row
from benchmarks.servers import Site, connect, private_site
from benchmarks.timing import interleave, median_ratio
from celery_continuations.protocol.claim import claim
from celery_continuations.protocol.owned import OwnedRecord
from celery_continuations.stores import Fence, Status
from celery_continuations.stores.redis import RedisStore

__all__ = ["measure"]

OWNER = "0123abcd.12345.67890123.4567/12346.67890124/89abcd"
SNAPSHOT = '{"version":1,"current":["import",500],"executions":1,"progress":[500,10000]}'
MESSAGE = "m" * 900


def measure(quick: bool) -> Figure:
    """Record what a worker sends to Redis for a claim, and time claims next to the bare call."""
    rounds = 200 if quick else 2_000
    with private_site() as site:
        with site.worker("steps") as worker:
            worker.wait_until_ready()
            site.send("claimed").get(timeout=60)  # Redis loads the scripts
            fresh, continuation = _round_trips(site)
        taken = _time(site, rounds)
    return Figure(
        "what a claim costs, on Redis",
        "Round trips: commands that MONITOR shows for the task's record in a worker, from the arrival of the message "
        f"in its queue to the task's first line. Times: medians of {rounds} interleaved calls of claim; a "
        "fresh one writes the message too.",
        [
            _count("round trips, fresh message", fresh),
            _count("round trips, continuation", continuation),
            _row("fresh message", taken, "fresh", "evalsha", "EVALSHA, return 1"),
            _row("continuation", taken, "continuation", "evalsha", "EVALSHA, return 1"),
            _row("continuation", taken, "continuation", "compare and set", "EVALSHA, fenced set"),
        ],
    )


def _count(what: str, count: int) -> Row:
    return Row(what, str(count), "", "", "1", count == 1)


def _row(what: str, taken: dict[str, list[float]], name: str, floor: str, floor_name: str) -> Row:
    return Row(
        what,
        f"{median(taken[name]) * 1e6:.0f} us",
        f"{median(taken[floor]) * 1e6:.0f} us {floor_name}",
        f"x {median_ratio(taken[name], taken[floor]):.2f}",
    )


def _round_trips(site: Site) -> list[int]:
    """Return how many commands each of a task's two executions needs until its first line runs."""
    counts: list[int] = []
    count = 0
    with site.redis.monitor() as monitor:
        result = site.send("claimed")
        for said in monitor.listen():
            command = str(said["command"])
            if said["client_type"] == "lua" or result.id not in command:
                continue
            if command.startswith("LPUSH celery "):
                count = 0
            elif "continuation:" in command:
                count += 1
            elif command.startswith("ECHO begun"):
                counts.append(count)
                if len(counts) == 2:
                    break
    result.get(timeout=60)
    return counts


def _time(site: Site, rounds: int) -> dict[str, list[float]]:
    store = RedisStore(connect(site.url), "benchmark")
    bare = BareRedis(connect(site.url), Fence(1, Status.QUEUED).dumps(), SNAPSHOT)
    waiting = [_queue(store) for _ in range(rounds)]

    def fresh() -> None:
        _claim(store, str(uuid.uuid4()), 0)

    def continuation() -> None:
        _claim(store, waiting.pop(), 1)

    calls: dict[str, Callable[[], object]] = {
        "fresh": fresh,
        "continuation": continuation,
        "evalsha": bare.evalsha,
        "compare and set": bare.compare_and_set,
    }
    return interleave(calls, rounds)


def _queue(store: RedisStore) -> str:
    """Make the record of an interrupted task; return its id."""
    task_id = str(uuid.uuid4())
    _claim(store, task_id, 0).queue(SNAPSHOT, 0)
    return task_id


def _claim(store: RedisStore, task_id: str, generation: int) -> OwnedRecord:
    owned = claim(
        store,
        task_id,
        generation,
        OWNER,
        snapshot=None,
        message=lambda: MESSAGE,
        ended=_none,
        loss_of=_none,
    )
    if owned is None:
        raise AssertionError("the claim was refused")
    return owned


def _none(text: str | None) -> None:
    """Stand in for a backend without results and a check that finds no dead worker."""
