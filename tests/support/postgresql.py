"""Connections to a server of PostgreSQL, and those of others."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.support.processes import LocalProcess, await_condition


def url_of(server: LocalProcess) -> str:
    return f"postgresql+psycopg://test@127.0.0.1:{server.port}/postgres"


def connect(server: LocalProcess) -> psycopg.Connection[Any]:
    return psycopg.connect(host="127.0.0.1", port=server.port, user="test", dbname="postgres", autocommit=True)


def others(client: psycopg.Connection[Any]) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    (count,) = client.execute(query).fetchone() or (0,)
    return int(count)


def end_others(client: psycopg.Connection[Any]) -> None:
    client.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    await_condition(lambda: not others(client), "the connections have ended")
