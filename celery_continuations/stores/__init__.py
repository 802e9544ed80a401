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
    Tombstone,
    Update,
)
from celery_continuations.stores.factory import open_store
from celery_continuations.stores.reading import each, lease_of

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
    "Tombstone",
    "Update",
    "each",
    "lease_of",
    "open_store",
]
