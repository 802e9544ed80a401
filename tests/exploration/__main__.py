"""``python -m tests.exploration``: every scenario, on every broker, with the faults asked for."""

from __future__ import annotations

import argparse
import sys

from tests.exploration.explorer import Explorer, simulated
from tests.exploration.scenarios import BROKERS, EVERY
from tests.exploration.world import Budget


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.exploration", description=__doc__)
    parser.add_argument("--crashes", type=int, default=2)
    parser.add_argument("--freezes", type=int, default=1)
    parser.add_argument("--duplicates", type=int, default=1)
    parser.add_argument("--errors", type=int, default=0, help="calls of the store that fail, or are made twice")
    parser.add_argument("--seconds", type=float, default=600.0, help="at most, for each scenario (default: 600)")
    options = parser.parse_args()
    budget = Budget(options.crashes, options.freezes, options.duplicates, options.errors)
    histories, incomplete = 0, 0
    with simulated():
        for kind in EVERY:
            for broker in BROKERS:
                for is_provable in (True, False):
                    scenario = kind(broker, is_provable=is_provable)
                    report = Explorer(scenario, budget).explore(options.seconds)
                    print(f"{scenario}: {report}", flush=True)
                    if report.violation is not None:
                        return 1
                    histories += report.histories
                    incomplete += not report.is_complete
    print(f"{histories} histories, no promise broken; {incomplete} explorations were cut off by --seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
