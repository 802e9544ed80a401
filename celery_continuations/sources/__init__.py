"""What ``iterate`` can loop over.

A source yields ``(item, cursor after this item)`` from any cursor on.
"""

from celery_continuations.sources.base import Source, opener
from celery_continuations.sources.files import csv_rows, json_lines, lines

__all__ = ["Source", "csv_rows", "json_lines", "lines", "opener"]
