"""What a store makes of entries that may be damaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.base import Lease, Record

__all__ = ["each", "lease_of"]


def lease_of(worker: str, left: object, note: object) -> Lease:
    """Return the lease that a store has found; one that cannot be read has expired.

    >>> lease_of("w", float("nan"), "stopping")
    Lease(worker='w', left=0.0, note='')
    """
    if isinstance(left, (int, float)) and math.isfinite(left) and isinstance(note, str):
        return Lease(worker, float(left), note)
    return Lease(worker, 0.0)


def each(task_ids: Iterable[str], read: Callable[[str], Record | None]) -> Iterator[tuple[str, Record | StoreError]]:
    """Read records one by one, for :meth:`Store.records`."""
    for task_id in task_ids:
        found: Record | StoreError | None
        try:
            found = read(task_id)
        except StoreError as exc:
            found = exc
        except (RecursionError, ArithmeticError) as exc:
            found = StoreError("record", f"{task_id} cannot be read: {type(exc).__name__}: {exc}")
        if found is not None:
            yield task_id, found
