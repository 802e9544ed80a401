"""The tasks."""

import time
from datetime import timedelta
from typing import Any

from celery_continuations import ContinuableTask
from celery_continuations.sources import keyed
from proj import airports
from proj.celery import app


@app.task(base=ContinuableTask, bind=True)
def import_airports(self: ContinuableTask, batch: int = 200, pause: float = 0.0) -> dict[str, Any]:
    """Import all airports into the table, once the import is approved, and report.

    Args:
        batch: rows per transaction.
        pause: seconds to wait after each batch.
    """
    expected = self.step("validate", airports.validate)

    # The worker is free from here on. It may take days, and no worker needs to run meanwhile.
    self.step("ask", airports.write_mail, expected, self.callback_url("approval"))
    approval = self.wait_for("approval", timeout=timedelta(days=7))

    # By key: airports may be added to the source or removed, and the import continues after the last one.
    for rows in self.iterate("import", keyed(airports.load, key="icao"), batch=batch, total=expected):
        airports.upsert(rows, imported_by=self.request.hostname)
        # Only for the demo: without the pause all rows take half a second, too short to stop a worker midway.
        time.sleep(pause)
    self.step("index", airports.create_indexes)

    # The worker is free during this wait too.
    self.sleep("settle", 2)

    # One small task per region; the worker is free to run them.
    regions = self.step("regions", airports.regions)
    counts = self.wait_for_results("count", [count_airports.s(region) for region in regions])

    return self.step("report", airports.report, expected, approval["by"], dict(zip(regions, counts, strict=True)))


@app.task
def count_airports(region: str) -> int:
    """Count the airports of a region in the table."""
    return airports.count(region)
