"""Figures, and how they are printed."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field

import celery
import redis
from rich.console import Console
from rich.table import Table

__all__ = ["Figure", "Row", "print_failure", "print_figure", "print_setting"]

# Without a terminal, for example in a log, rich assumes 80 columns and breaks every line.
console = Console(width=None if sys.stdout.isatty() else 132, highlight=False)


@dataclass(frozen=True)
class Row:
    """One line of a figure.

    Attributes:
        what: the thing that was measured.
        measured: the value, with its unit.
        floor: what it is compared with, measured in the same run.
        compared: ratio or difference of the two.
        target: the value to reach.
        met: whether the target is met; None without a target.
    """

    what: str
    measured: str
    floor: str = ""
    compared: str = ""
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Figure:
    """A table of rows, and the notes needed to read it."""

    title: str
    notes: str
    rows: list[Row] = field(default_factory=list)


def print_setting() -> None:
    """Print the versions and hardware that all figures depend on."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(
        f"Python {platform.python_version()}, Celery {celery.__version__}, redis-py {redis.__version__}, "
        f"{os.cpu_count()} CPUs, load {load}\n"
    )


def print_figure(name: str, figure: Figure, seconds: float) -> None:
    """Print one figure as a table."""
    table = Table(
        title=f"{name}: {figure.title}",
        caption=f"{figure.notes} ({seconds:.0f} s)",
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="dim",
    )
    table.add_column("")
    for heading in ("measured", "floor", "compared", "target"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in figure.rows:
        table.add_row(row.what, row.measured, row.floor, row.compared, row.target, _VERDICTS[row.met])
    console.print(table)
    console.print()


def print_failure(name: str, error: str) -> None:
    """Print that a figure could not be measured."""
    console.print(f"[bold red]{name} could not be measured[/]")
    console.print(error, markup=False)


_VERDICTS = {None: "", True: "[green]met[/]", False: "[bold red]MISSED[/]"}
