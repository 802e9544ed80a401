"""The cost of iterate over the rows of a file: nanoseconds a row, and the time to resume far into one."""

from __future__ import annotations

import csv
import json
import os
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.items import Quiet
from benchmarks.report import Figure, Row
from benchmarks.timing import interleave, median_ratio
from celery_continuations.core.iteration import Iteration
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.sources import Source, csv_rows, json_lines, lines, opener

__all__ = ["measure"]

ROWS = 100_000
FAR = 10_000_000

TARGET = 150
FARTHER = 2.0

# Rows to read from where a task begins or resumes.
FIRST = 1_000

# Rows over which memory is measured, and how much it may exceed that of the first tenth.
MEASURED = 1_000_000
GROWTH = 1.1


def measure(quick: bool) -> Figure:
    """Alternate between the loop and a plain one for each kind of file; then begin at both ends of a large file."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [_added(case, rounds=10 if quick else 40) for case in _cases(Path(folder))]
        rows += _far(Path(folder), FAR // 10 if quick else FAR)
    return Figure(
        "what iterate adds to the plain loop over a file, for each row, when nothing is due",
        f"The fastest of many interleaved loops over {ROWS:,} rows of some 20 bytes. Rows as dicts are compared with "
        f"csv.DictReader. Resuming reads {FIRST:,} rows; the ratio is the median of interleaved pairs.",
        rows,
    )


Case = tuple[str, Source, Callable[[], Iterator[Any]], bool]


def _cases(folder: Path) -> list[Case]:
    plain, quoted, wide, values = (folder / name for name in ("plain.csv", "quoted.csv", "wide.txt", "values.jsonl"))
    _write(plain, (f"{number},name {number},value\n" for number in range(ROWS)))
    _write(quoted, (f'{number},"name {number}",value\n' for number in range(ROWS)))
    _write(wide, (f"{number} größer als {number - 1}\n" for number in range(ROWS)))
    _write(values, (json.dumps({"id": number}) + "\n" for number in range(ROWS)))
    return [
        ("lines", lines(plain), lambda: open(plain), True),
        ("lines that are not ASCII", lines(wide), lambda: open(wide), True),
        ("CSV rows as lists", csv_rows(plain, header=False), lambda: csv.reader(open(plain, newline="")), True),
        (
            "CSV rows as lists, quoted",
            csv_rows(quoted, header=False),
            lambda: csv.reader(open(quoted, newline="")),
            True,
        ),
        ("CSV rows as dicts", csv_rows(plain), lambda: csv.DictReader(open(plain, newline="")), True),
        ("CSV rows as dicts, quoted", csv_rows(quoted), lambda: csv.DictReader(open(quoted, newline="")), True),
        ("JSON lines", json_lines(values), lambda: map(json.loads, open(values)), False),
    ]


def _added(case: Case, rounds: int) -> Row:
    what, source, plain, is_aimed_at = case
    taken = interleave({"plain": lambda: _exhaust(plain()), "ours": lambda: _exhaust(_loop(source))}, rounds)
    fastest = {name: min(seconds) * 1e9 / ROWS for name, seconds in taken.items()}
    added = fastest["ours"] - fastest["plain"]
    return Row(
        what,
        f"{fastest['ours']:.0f} ns",
        f"{fastest['plain']:.0f} ns",
        f"{added:+.0f} ns",
        f"+{TARGET} ns" if is_aimed_at else "",
        added <= TARGET if is_aimed_at else None,
    )


def _far(folder: Path, far: int) -> list[Row]:
    path = folder / "large.csv"
    _write(path, (f"{number},name {number},value\n" for number in range(far)))
    source = csv_rows(path)
    near_cursor = next(iter(source.read(None)))[1]
    far_cursor = near_cursor[0], _offset_before_end(path)
    taken = interleave({"near": partial(_begin, source, near_cursor), "far": partial(_begin, source, far_cursor)}, 30)
    ratio = median_ratio(taken["far"], taken["near"])
    first, all_ = _peak(source, MEASURED // 10), _peak(source, MEASURED)
    return [
        Row(
            f"resume at row {far:,}",
            f"{median(taken['far']) * 1e3:.2f} ms",
            f"{median(taken['near']) * 1e3:.2f} ms at row 1",
            f"{ratio:.2f} x",
            f"{FARTHER:.0f} x",
            ratio <= FARTHER,
        ),
        Row(
            f"most memory held, of {MEASURED:,} rows",
            f"{all_ / 1024:,.0f} KiB",
            f"{first / 1024:,.0f} KiB of a tenth",
            f"{all_ / first:.2f} x",
            f"{GROWTH} x",
            all_ <= GROWTH * first,
        ),
    ]


def _offset_before_end(path: Path) -> int:
    """Return the offset of a line that has somewhat more lines after it than are read."""
    with path.open("rb") as file:
        file.seek(-40 * FIRST, os.SEEK_END)
        file.readline()
        return file.tell()


def _peak(source: Source, rows: int) -> int:
    tracemalloc.start()
    try:
        _exhaust(islice(_loop(source), rows))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _begin(source: Source, cursor: Any) -> None:
    _exhaust(islice(_loop(source, cursor), FIRST))


def _loop(source: Source, start: Any = None) -> Iterator[Any]:
    run = Run("benchmark", Snapshot(executions=1), Quiet())
    return iter(run.declare(Iteration(run, "rows", opener("rows", source), start=start)))


def _exhaust(rows: Iterator[Any]) -> None:
    for _ in rows:
        pass


def _write(path: Path, rows: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(rows)
