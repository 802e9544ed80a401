"""Where a record lives between two executions."""

from celery_continuations.stores.base import (
    CANCEL,
    ENDED,
    OWNED,
    PAUSE,
    UNCHANGED,
    Fence,
    Lease,
    Look,
    Record,
    Status,
    Store,
    due_at,
    each,
    fits,
    merge,
)
from celery_continuations.stores.factory import open_store

__all__ = [
    "CANCEL",
    "ENDED",
    "OWNED",
    "PAUSE",
    "UNCHANGED",
    "Fence",
    "Lease",
    "Look",
    "Record",
    "Status",
    "Store",
    "due_at",
    "each",
    "fits",
    "merge",
    "open_store",
]
