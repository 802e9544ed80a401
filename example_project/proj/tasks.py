"""The tasks."""

import time
from typing import Any

from celery_continuations import ContinuableTask
from proj import airports
from proj.celery import app


@app.task(base=ContinuableTask, bind=True)
def import_airports(self: ContinuableTask, batch: int = 200, pause: float = 0.0) -> dict[str, Any]:
    """Import all airports into the table, and report.

    Args:
        batch: rows to a transaction.
        pause: seconds to wait after each batch.
    """
    expected = self.step("validate", airports.validate)

    for rows in self.iterate("import", airports.load, batch=batch):
        airports.upsert(rows, imported_by=self.request.hostname)
        # No part of an import: without it all rows take half a second, too short to stop a worker midway.
        time.sleep(pause)

    self.step("index", airports.create_indexes)
    return self.step("report", airports.report, expected)
