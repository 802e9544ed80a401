"""Format facts as text for a terminal."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from celery_continuations.core import codec
from celery_continuations.exceptions import ContinuationError

__all__ = ["COLOURS", "Duration", "as_json", "cells", "cut", "duration", "place", "plain", "table", "whole", "width"]

#: Colours of the states.
COLOURS = {
    "running": "green", "finishing": "green", "queued": "cyan", "waiting": "blue",
    "paused": "yellow", "failed": "red", "cancelled": "magenta", "done": None,
}  # fmt: skip

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

_HEADS = ("ID", "TASK", "STATE", "AGE", "AT")

# Between two columns.
_GAP = "  "

# The least width of a task's name.
_LEAST = 8


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A duration on the command line, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return ``90s``, ``5m``, ``2h`` or ``3d`` as seconds; a number alone is seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value)
        if found is None:
            self.fail(f"{value!r} is not a duration; write 90s, 5m, 2h or 3d", param, ctx)
        return float(found[1]) * _UNITS[found[2] or "s"]


def duration(seconds: float) -> str:
    """Return a duration in its largest unit.

    >>> [duration(one) for one in (0.2, 89, 119, 7200, 200000)]
    ['0s', '89s', '1m', '2h', '2d']
    """
    for unit, size in (("d", 86400), ("h", 3600)):
        if seconds >= 2 * size or (unit == "h" and seconds >= size):
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds // 60)}m" if seconds >= 90 else f"{int(seconds)}s"


def plain(text: str) -> str:
    r"""Return untrusted text without characters that control a terminal or begin a new line.

    >>> plain("a\x1b[31m\nb")
    'a?[31m?b'
    """
    return "".join(char if char.isprintable() else "?" for char in text)


def cut(text: str, width: int) -> str:
    """Cut a text to a width.

    >>> cut("approval", 6)
    'appro…'
    """
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def width() -> int | None:
    """Return the width of the terminal; None if the output is not a terminal, and nothing is cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def as_json(value: Any, *, line: bool = False) -> str:
    """Write facts as JSON."""
    return json.dumps(value, indent=None if line else 2)


def place(facts: dict[str, Any]) -> str:
    """Return a task's place, in a few words."""
    if facts["error"]:
        return f"unreadable: {facts['error']}"
    words = []
    if facts["wish"]:
        words.append(f"to {facts['wish']}")
    if facts["misfit"]:
        words.append(f"needs other code: {facts['misfit']}")
    elif facts["waiting"]:
        words.append(_wait(facts["waiting"]))
    elif facts["step"]:
        words.append(f"{facts['step']} {_progress(facts)}".strip())
    elif facts["completed"]:
        words.append(f"{facts['completed']} steps done" if facts["completed"] > 1 else "1 step done")
    if facts["failure"]:
        words.append(_failure(facts["failure"]))
    return ", ".join(words) or "-"


def _failure(failure: dict[str, Any]) -> str:
    return f"{failure['type']}: {failure['message']}".removesuffix(": ")


def _progress(facts: dict[str, Any]) -> str:
    if facts["percent"] is not None:
        return f"{facts['percent']}%"
    if facts["done"] is not None:
        return f"{facts['done']:,} done"
    return "" if facts["cursor"] is None else f"at {cursor(facts['cursor'])}"


def cursor(encoded: Any) -> str:
    """Return the ``repr`` of an encoded cursor, or its JSON if it cannot be decoded."""
    try:
        return repr(codec.decode(encoded))
    except (ContinuationError, ValueError):  # the second for numbers that Python refuses to write
        return json.dumps(encoded)


def _wait(waiting: dict[str, Any]) -> str:
    kind, until, name = waiting["kind"], waiting["until"], waiting["key"]
    # Release 0.1 accepted inf and nan.
    left = "" if until is None or not math.isfinite(until) else f" {duration(max(0.0, until - time.time()))}"
    if kind == "time":
        return f"sleeps{left or ' on'}"
    text = f"waits for {name!r}" if kind == "delivery" else f"waits for result {name}"
    return text + (f",{left} left" if left else "")


def cells(one: dict[str, Any]) -> list[str]:
    """Return the texts of a task in a list."""
    return [
        plain(one["id"]),
        plain(one["task"] or "-"),
        one["state"] or "?",
        "-" if one["began"] is None else duration(time.time() - one["began"]),
        plain(place(one)),
    ]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a list."""
    found = [cells(one) for one in rows]
    sizes = [max(map(len, column)) for column in zip(_HEADS, *found, strict=True)]
    total = width()
    if total is not None:
        _fit(sizes, total)
    yield click.style(_line(_HEADS, sizes), bold=True)
    for row in found:
        yield _line(row, sizes, COLOURS.get(row[2], "red"))


def _fit(sizes: list[int], total: int) -> None:
    """Cut the task's name, then the place, to the width."""
    total -= len(_GAP) * (len(sizes) - 1)
    rest = max(total - sizes[0] - sizes[2] - sizes[3], 2 * _LEAST)
    sizes[1] = min(sizes[1], max(rest - sizes[4], rest * 2 // 5, _LEAST))
    sizes[4] = min(sizes[4], rest - sizes[1])
    sizes[0] = min(sizes[0], max(total - sum(sizes[1:]), _LEAST))


def _line(row: Any, sizes: list[int], colour: str | None = None) -> str:
    ident, task, state, age, at = row
    task = task if len(task) <= sizes[1] else "…" + task[1 - sizes[1] :]  # its end is more specific than its beginning
    state = click.style(state.ljust(sizes[2]), fg=colour) if colour else state.ljust(sizes[2])
    shown = [cut(ident, sizes[0]).ljust(sizes[0]), task.ljust(sizes[1]), state, age.rjust(sizes[3]), cut(at, sizes[4])]
    return _GAP.join(shown).rstrip()


def whole(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the lines for all facts of a task."""
    total = width()
    yield click.style(plain(facts["id"]), bold=True) + f"  {plain(facts['task'] or '')}".rstrip()
    if facts["error"]:
        yield click.style(cut(f"  {plain(place(facts))}", total or sys.maxsize), fg="red")
        return
    for name, text in _pairs(facts):
        line = cut(f"  {name:<11} {plain(text)}", total or sys.maxsize)
        colour = COLOURS.get(facts["state"]) if name == "state" else "red" if name in ("error", "failed with") else None
        yield click.style(line[:13], dim=True) + (click.style(line[13:], fg=colour) if colour else line[13:])


def _pairs(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    wish = f", to {facts['wish']}" if facts["wish"] else ""
    yield "state", f"{facts['state']}{wish}, generation {facts['generation']}"
    if facts["owner"]:
        yield "owner", facts["owner"]
    if facts["args"] is not None:
        yield "arguments", f"{facts['args']} {facts['kwargs']}"
    if facts["began"] is not None:
        yield "began", _moment(facts["began"])
    yield "executions", f"{facts['executions']}, resumed {facts['resumptions']} times, {facts['counted']} count"
    yield "run time", f"{facts['run_time']:.1f} s in executions that have ended"
    if any(facts["losses"].values()):
        yield "losses", "in a row at this place: {alone} alone, {shared} with others".format(**facts["losses"])
    if facts["reason"]:
        left = f", {_moment(facts['left_at'])}" if facts["left_at"] else ""
        yield "last left", facts["reason"] + left
    if facts["version"] != 1:
        yield "version", f"begun by version {facts['version']} of the task's code"
    if facts["misfit"]:
        yield "code", f"a worker's code could not resume it: {facts['misfit']}"
    if facts["due"] is not None:
        yield "due", _moment(facts["due"])
    for one in facts["steps"]:
        yield "step", f"{one['name']}: {one['kind']}"
    if facts["step"]:
        yield "current", _current(facts)
    if facts["waiting"]:
        yield "waiting", _wait(facts["waiting"])
    for one in facts["inbox"]:
        yield "delivered", f"{one['name']}: {one['kind']}"
    for name, value in facts["saved"].items():
        yield "saved", f"{name} = {cursor(value)}"
    if facts["failure"]:
        yield "failed with", _failure(facts["failure"])
    for one in facts["errors"]:
        at = "" if one["step"] is None else f" (in {one['step']} at {cursor(one['cursor'])})"
        yield "error", f"{one['type']}: {one['message']}{at}"


def _current(facts: dict[str, Any]) -> str:
    parts = [facts["step"]]
    if facts["cursor"] is not None:
        parts.append(f"at {cursor(facts['cursor'])}")
    if facts["done"] is not None:
        of = "" if facts["total"] is None else f" of {facts['total']:,}"
        parts.append(f"{facts['done']:,}{of} done")
    if facts["percent"] is not None:
        parts.append(f"{facts['percent']}%")
    return ", ".join(parts)


def _moment(when: float) -> str:
    away = when - time.time()
    said = f"in {duration(away)}" if away > 0 else f"{duration(-away)} ago"
    return f"{datetime.fromtimestamp(when):%Y-%m-%d %H:%M:%S} ({said})"
