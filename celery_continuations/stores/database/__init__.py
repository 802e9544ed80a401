"""Records in SQLite or PostgreSQL, by SQLAlchemy Core; one statement for each operation.

=======================  =====================================================================
``continuation_record``  a row for each record; ``worker`` is null unless it owns the record,
                         ``due`` and ``expires`` are null for never, ``inbox`` where
                         nothing was delivered
``continuation_lease``   a row for each worker
=======================  =====================================================================

Every statement commits automatically, and all times are by the database's clock.
"""

from celery_continuations.exceptions import StoreError

try:
    import sqlalchemy.sql.functions  # noqa: F401 - the modules below need it
except ImportError as exc:  # pragma: no cover - tested in a subprocess without SQLAlchemy
    raise StoreError(
        "database", "SQLAlchemy 2.0 or later is missing; run: pip install 'celery-continuations[sqlalchemy]'"
    ) from exc

from celery_continuations.stores.database.store import DatabaseStore
from celery_continuations.stores.database.tables import metadata

__all__ = ["DatabaseStore", "metadata"]
