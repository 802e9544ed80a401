"""The engines and connections of a SQLAlchemy session."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["configured_engines", "connections_of", "several_engines", "watch_savepoints"]


def configured_engines(session: Any) -> dict[Any, None]:
    """Return the engines that a session was given with bind= and binds=."""
    binds = session.binds if hasattr(session, "binds") else session._Session__binds  # SQLAlchemy 2.0 has no public name
    binds = [session.bind, *binds.values()]
    return {bind.engine: None for bind in binds if bind is not None}


def connections_of(session: Any) -> list[Any]:
    """Return the connections that take part in a session's transaction."""
    transaction = session.get_transaction()
    # SQLAlchemy has no public name for them.
    return [] if transaction is None else [found[0] for found in transaction._connections.values()]


def several_engines(engines: Iterable[Any], verb: str) -> str:
    """Return the text of the error for a session of ``transaction=`` that ``verb`` several engines."""
    names = " and ".join(engine.url.render_as_string(hide_password=True) for engine in engines)
    return (
        f"the SQLAlchemy session of transaction= {verb} several engines ({names}), whose databases do not commit "
        "together: a kill between the commits would lose an item, or repeat it. Write transaction= with a session of "
        "one engine, as in Session(engine), and give the other database a session of its own"
    )


def watch_savepoints(connection: Any) -> None:
    """Have a connection to SQLite begin a transaction before a savepoint."""
    from sqlalchemy import event

    if connection.dialect.name == "sqlite" and not event.contains(connection, "savepoint", _on_savepoint):
        event.listen(connection, "savepoint", _on_savepoint)


def _on_savepoint(connection: Any, name: str | None) -> None:
    """Begin a transaction: the driver begins none, and the release of the savepoint would commit without the cursor."""
    if not connection.connection.driver_connection.in_transaction:
        connection.exec_driver_sql("BEGIN")
