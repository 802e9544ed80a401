"""What a task pays that uses no step: tasks a second, beside a plain app's."""

from __future__ import annotations

from statistics import median

from benchmarks.report import Figure, Row
from benchmarks.servers import Site, private_site
from benchmarks.timing import median_ratio

__all__ = ["measure"]

TARGET = 0.97
APPS = ("steps", "plain")


def measure(quick: bool) -> Figure:
    """Let one worker of each app drain a queue of tasks that do nothing, in turn."""
    pairs, tasks = (3, 1_000) if quick else (10, 3_000)
    rates: dict[str, list[float]] = {app: [] for app in APPS}
    with private_site() as site, site.worker("steps", "steps") as ours, site.worker("plain", "plain") as theirs:
        ours.wait_until_ready()
        theirs.wait_until_ready()
        for app in APPS:
            _rate(site, app, tasks)  # connections and caches
        for pair in range(pairs):
            for app in APPS if pair % 2 else reversed(APPS):
                rates[app].append(_rate(site, app, tasks))
    ratio = median_ratio(rates["steps"], rates["plain"])
    best = max(rates["steps"]) / max(rates["plain"])
    return Figure(
        "tasks a second of an app with task_cls = AppTask that use no step",
        f"Medians of {pairs} interleaved pairs of workers that drain {tasks:,} tasks queued beforehand, with no result "
        f"to store, which would hide what is added. Ratio of the best of each: {best:.3f}.",
        [
            Row(
                "AppTask",
                f"{median(rates['steps']):,.0f}/s",
                f"{median(rates['plain']):,.0f}/s plain Task",
                f"x {ratio:.3f}",
                f"at least x {TARGET}",
                ratio >= TARGET,
            )
        ],
    )


def _rate(site: Site, queue: str, tasks: int) -> float:
    """Queue ``tasks`` behind a gate, open it, and time the worker from there to the end of the queue."""
    gate = site.send("gate", "open", queue=queue)
    site.send_many("nothing", tasks, queue)
    end = site.send("clock", queue=queue)
    site.redis.rpush("open", "1")
    seconds: float = end.get(timeout=120) - gate.get(timeout=120)
    return tasks / seconds
