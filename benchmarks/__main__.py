"""Print each figure with its floor, measured in the same run, and its target."""

from __future__ import annotations

import signal
import sys
import time
import traceback

import click

from benchmarks import (
    amplification,
    children,
    claim,
    delivery,
    items,
    recovery,
    report,
    restart,
    resumable,
    rows,
    rows_of_files,
    saves,
    size,
    stop,
    sweep,
    throughput,
    waiting,
    worker,
)

FIGURES = {
    "items": items.measure,
    "worker": worker.measure,
    "rows": rows.measure,
    "files": rows_of_files.measure,
    "saves": saves.measure,
    "claim": claim.measure,
    "size": size.measure,
    "sweep": sweep.measure,
    "waiting": waiting.measure,
    "children": children.measure,
    "delivery": delivery.measure,
    "stop": stop.measure,
    "restart": restart.measure,
    "throughput": throughput.measure,
    "amplification": amplification.measure,
    "recovery": recovery.measure,
    "resumable": resumable.measure,
}


@click.command()
@click.option("--only", type=click.Choice(list(FIGURES)), multiple=True, help="Measure this one; may be repeated.")
@click.option("--quick", is_flag=True, help="Fewer repetitions: the figures are less certain.")
def main(only: tuple[str, ...], quick: bool) -> None:
    """Measure, and print each figure with its target.  A missed target is reported and is not a failure."""
    # The servers and workers are context managers: an exception on SIGTERM stops them too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    report.print_setting()
    failed = [name for name in only or FIGURES if not _show(name, quick)]
    if failed:
        sys.exit(f"could not be measured: {', '.join(failed)}")


def _show(name: str, quick: bool) -> bool:
    """Measure and print one figure; return whether it succeeded."""
    began = time.monotonic()
    try:
        figure = FIGURES[name](quick)
    except Exception:
        report.print_failure(name, traceback.format_exc())
        return False
    report.print_figure(name, figure, time.monotonic() - began)
    return True


if __name__ == "__main__":
    main()
