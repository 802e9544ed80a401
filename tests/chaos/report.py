"""The printed report of a run."""

from __future__ import annotations

from tests.chaos.run import Run

try:
    from rich.console import Console
    from rich.table import Table
except ImportError:  # without rich, a table without lines
    Console = None  # type: ignore[assignment,misc]


def rows(run: Run) -> list[tuple[str, str]]:
    """Return the rows of the table."""
    verdict, faults = run.verdict, run.storm.faults
    found = [(kind, str(count)) for kind, count in sorted(faults.counts.items())]
    found += [
        ("tasks", str(verdict.tasks)),
        ("ended by a soft time limit", str(verdict.limited)),
        ("executions", str(verdict.executions)),
        ("executions lost", str(verdict.lost)),
        ("items needed", str(verdict.needed)),
        ("items done", str(verdict.done)),
        ("repeated", str(verdict.repeated)),
        ("oldest repeated", f"{verdict.oldest:.2f} s"),
        ("longest recovery", f"{verdict.recovery:.1f} s"),
        ("in all", f"{run.seconds:.0f} s"),
    ]
    if run.sent_again:
        found.append(("sent again, lost by the broker", str(run.sent_again)))
    return found


def problems(run: Run) -> list[str]:
    """Return the problems found, with the trace of the first ten tasks that have one."""
    found = list(run.problems)
    traced: set[str] = set()
    for task, problem in run.verdict.wrong:
        found.append(f"{task}: {problem}")
        if task not in traced and len(traced) < 10:
            traced.add(task)
            found.append(run.checker.trace_of(task))
    return found


def show(run: Run, holds: bool) -> None:
    """Print a run's table, and the problems found."""
    title = f"chaos on {run.options.broker}, seed {run.options.seed}"
    if Console is None:
        print(title)
        for name, value in rows(run):
            print(f"  {name:<32}{value:>8}")
    else:
        table = Table("", "", title=title, show_header=False)
        table.columns[1].justify = "right"
        for row in rows(run):
            table.add_row(*row)
        Console().print(table)
    verdict = (
        "All of it holds."
        if holds
        else f"VIOLATED: python -m tests.chaos --broker {run.options.broker} --seconds {run.options.seconds:g} "
        f"--seed {run.options.seed}"
    )
    print("\n".join([*problems(run), verdict]))
