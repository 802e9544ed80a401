"""The store on Django's ORM, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import ConnectionHandler, connections

from celery_continuations.stores.base import Store
from celery_continuations.testing.stores import StoreConformance
from tests.support.django_project import threads_close_connections
from tests.support.postgresql import connect, end_others
from tests.support.processes import LocalProcess


class TestDjangoStoreOnPostgreSQL(StoreConformance):
    @pytest.fixture(autouse=True)
    def database(self, postgres_server: LocalProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        threads_close_connections(monkeypatch)
        name = "postgres"
        connections.settings["progress"] = ConnectionHandler().configure_settings(
            {
                "default": {},
                "progress": {
                    "ENGINE": "django.db.backends.postgresql",
                    "NAME": name,
                    "USER": "test",
                    "HOST": "127.0.0.1",
                    "PORT": postgres_server.port,
                },
            }
        )["progress"]
        call_command("migrate", "celery_continuations", database="progress", verbosity=0)
        with connect(postgres_server) as self.client:
            yield
        connections["progress"].close()

    client: psycopg.Connection[Any]

    def make_store(self, namespace: str) -> Store:
        from celery_continuations.stores.django import DjangoStore

        return DjangoStore("progress", namespace)

    def corrupt(self, store: Store, task_id: str) -> None:
        self.client.execute("UPDATE celery_continuations_record SET fence = 'nonsense' WHERE task_id = %s", (task_id,))

    def break_connection(self, store: Store) -> None:
        end_others(self.client)
