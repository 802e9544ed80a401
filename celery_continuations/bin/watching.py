"""Watch tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
from celery import states

from celery_continuations import celery_internals
from celery_continuations.bin import facts, shown
from celery_continuations.stores import TERMINAL

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["bars", "has_rich", "lines", "looks"]

# The state of a task without a record: it has not begun, or ended long ago.
_UNKNOWN = "unknown"


class _Pace:
    """The pace of steps, from their progress while they are watched."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, int, float]] = {}

    def of(self, one: dict[str, Any], now: float) -> tuple[float | None, float | None]:
        """Return the items per second, and the seconds until the step is done; None if it is not known."""
        step, done, total = one["step"], one["done"], one["total"]
        if done is None or one["state"] not in ("running", "queued"):
            self._first.pop(one["id"], None)
            return None, None
        first = self._first.get(one["id"])
        if first is None or first[0] != step or done < first[1]:
            first = self._first[one["id"]] = (step, done, now)
        if done == first[1] or now <= first[2]:
            return None, None
        rate = (done - first[1]) / (now - first[2])
        return rate, None if total is None else max(0.0, (total - done) / rate)


def looks(app: Celery, task_ids: tuple[str, ...], interval: float) -> Iterator[list[dict[str, Any]]]:
    """Yield the facts of the tasks at each interval, until all of the given ones have ended."""
    pace = _Pace()
    while True:
        found = [_given(app, task_id) for task_id in task_ids] if task_ids else _all(app)
        now = time.time()
        for one in found:
            one["rate"], one["left"] = pace.of(one, now)
        yield found
        if task_ids and all(_is_over(one) for one in found):
            return
        time.sleep(interval)


def _given(app: Celery, task_id: str) -> dict[str, Any]:
    found = facts.given(app, task_id)
    if found is not None:
        return found
    state = app.backend.get_state(task_id) if celery_internals.keeps_results(app.backend) else states.PENDING
    return facts.nothing(task_id, state.lower() if state in states.READY_STATES else _UNKNOWN)


def _all(app: Celery) -> list[dict[str, Any]]:
    return sorted((one for one in facts.listed(app) if not _is_over(one)), key=facts.key)


def _is_over(one: dict[str, Any]) -> bool:
    ended = (*TERMINAL, *(state.lower() for state in states.READY_STATES))
    return bool(one["error"]) or one["state"] in ended


def lines(seen: Iterator[list[dict[str, Any]]], say: Callable[[str], None], *, as_json: bool) -> None:
    """Print each change on a line."""
    before: dict[str, Any] = {}
    for found in seen:
        for one in found:
            what = {name: value for name, value in one.items() if name not in ("rate", "left")}
            if before.get(one["id"]) != what:
                before[one["id"]] = what
                say(shown.as_json(one, line=True) if as_json else _line(one))


def _line(one: dict[str, Any]) -> str:
    words = [
        time.strftime("%H:%M:%S"),
        one["id"],
        one["task"] or "-",
        one["state"] or "?",
        shown.place(one),
        speed(one),
    ]
    return shown.plain(" ".join(word for word in words if word))


def speed(one: dict[str, Any]) -> str:
    """Return the rate and the time left, if they are known."""
    rate = "" if one["rate"] is None else f"{one['rate']:,.1f}/s"
    return rate if one["left"] is None else f"{rate}, {shown.duration(one['left'])} left"


def has_rich() -> bool:
    """Whether rich, which draws the bars, is installed."""
    try:
        import rich  # noqa: F401
    except ImportError:
        return False
    return True


def bars(seen: Iterator[list[dict[str, Any]]], *, no_color: bool) -> None:
    """Draw a bar for each task, on a terminal."""
    from rich.console import Console
    from rich.live import Live

    console = Console(no_color=no_color, highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        for found in seen:
            live.update(_drawn(found), refresh=True)


def _drawn(found: list[dict[str, Any]]) -> Any:
    """Return one line for each task, with the beginning of its id."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1), expand=True)
    for options in ({"width": 8}, {"ratio": 2}, {"width": 9}, {"ratio": 3}, {"width": 12}, {"width": 18}):
        grid.add_column(no_wrap=True, overflow="ellipsis", **options)  # type: ignore[arg-type]
    for one in found:
        task = (one["task"] or "-").rpartition(".")[2]
        total = one["total"] if one["done"] is not None else None
        bar = ProgressBar(total=total, completed=one["done"] or 0) if total else ""
        state = Text(one["state"] or "?", style=shown.COLOURS.get(one["state"] or "") or "")
        number = f"{one['completed'] + 1}:" if one["step"] else ""
        cells = (one["id"][:8], task, state, number + shown.place(one), bar, speed(one))
        grid.add_row(*(Text(shown.plain(cell)) if isinstance(cell, str) else cell for cell in cells))
    return grid if found else Text("no tasks")


def missing_rich() -> click.ClickException:
    """Return the error that names the extra with the bars."""
    return click.ClickException(
        "rich is missing, which draws the bars; run: pip install 'celery-continuations[shell]'; "
        "--json, or a pipe, works without it"
    )
