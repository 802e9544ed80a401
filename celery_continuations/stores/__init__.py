"""Where a record lives between two executions."""

from celery_continuations.stores.base import Claim, Fence, Record, Status, Store
from celery_continuations.stores.opening import open_store

__all__ = ["Claim", "Fence", "Record", "Status", "Store", "open_store"]
