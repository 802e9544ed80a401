"""``python -m tests.model``: explore with more faults than a test run has time for."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence

from tests.model.suite import explore, full
from tests.model.world import Budget


def main(arguments: Sequence[str] | None = None) -> int:
    """Explore, and return 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--crashes", type=int, default=2)
    parser.add_argument("--freezes", type=int, default=1)
    parser.add_argument("--duplicates", type=int, default=1)
    parser.add_argument("--errors", type=int, default=0, help="of the store")
    parser.add_argument("--faults", type=int, default=99, help="in all, in one history")
    parser.add_argument("--seconds", type=float, default=600, help="for each scenario")
    parser.add_argument("--scenario", help="only those whose line has this in it")
    options = parser.parse_args(arguments)
    most = Budget(options.crashes, options.freezes, options.duplicates, options.errors, options.faults)
    jobs = [(one, options.seconds) for one in full(most) if (options.scenario or "") in str(one)]
    histories, broken = 0, 0
    with multiprocessing.get_context("spawn").Pool(maxtasksperchild=1) as pool:
        for exploration, report in pool.imap(explore, jobs):
            print(f"{exploration}: {report}", flush=True)
            histories += report.histories
            broken += report.violation is not None
    print(f"{histories} histories of {len(jobs)} scenarios, {broken} of them with a broken promise")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
