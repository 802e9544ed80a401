"""``python -m tests.chaos``: see ``--help``."""

from __future__ import annotations

import signal
import sys

from tests.chaos.report import show
from tests.chaos.run import Run, arguments


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends servers and workers too
    run = Run(arguments())
    print(f"seed {run.options.seed}", flush=True)
    holds = run()
    show(run, holds)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
