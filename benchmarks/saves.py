"""What a checkpoint costs that saves: microseconds for each, durable against a kill of the worker."""

from __future__ import annotations

from statistics import median

from benchmarks.report import Figure, Row
from benchmarks.servers import Site, private_site
from benchmarks.timing import median_ratio

__all__ = ["measure"]

Times = dict[str, list[float]]


def measure(quick: bool) -> Figure:
    """Let a task save every checkpoint, and make the bare calls in turn with its own."""
    rounds = 40 if quick else 250
    with private_site() as site, site.worker("steps") as worker:
        worker.wait_until_ready()
        redis = _run(site, "saves_to_redis", rounds)
        files = _run(site, "saves_to_files", rounds)
    return Figure(
        "what a checkpoint costs that saves",
        f"Medians of {rounds} interleaved rounds in a worker's child; a snapshot of {redis['size'][0]} bytes. "
        "store.save is given the snapshot's text. A full save is step.advance() with "
        "continuation_checkpoint_interval = 0: it builds the text and saves it, and is all that the task waits for.",
        [
            _row("Redis, store.save", redis, "store", "compare and set", "EVALSHA, fenced set", 1.25),
            _row("Redis, store.save", redis, "store", "evalsha", "EVALSHA, return 1"),
            _row("Redis, store.save", redis, "store", "set", "SET"),
            _row("Redis, full save", redis, "checkpoint", "compare and set", "EVALSHA, fenced set"),
            _row("Redis, full save", redis, "checkpoint", "evalsha", "EVALSHA, return 1"),
            _row("Redis, full save", redis, "checkpoint", "set", "SET"),
            _row("filesystem, store.save", files, "store", "write", "write + rename"),
            _row("filesystem, full save", files, "checkpoint", "write", "write + rename"),
        ],
    )


def _run(site: Site, task: str, rounds: int) -> Times:
    times: Times = site.send(task, rounds).get(timeout=120)
    return times


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
