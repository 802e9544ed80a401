"""Stores: they keep records between two executions."""

from celery_continuations.stores.base import (
    NOT_CLAIMABLE,
    OWNED,
    TERMINAL,
    Command,
    Due,
    Fence,
    Lease,
    Record,
    Scan,
    Status,
    Store,
    Update,
    each,
    lease_of,
)
from celery_continuations.stores.factory import open_store

__all__ = [
    "NOT_CLAIMABLE",
    "OWNED",
    "TERMINAL",
    "Command",
    "Due",
    "Fence",
    "Lease",
    "Record",
    "Scan",
    "Status",
    "Store",
    "Update",
    "each",
    "lease_of",
    "open_store",
]
