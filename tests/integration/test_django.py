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
from tests.support.unreadable import KINDS, harms_no_other_task
from tests.support.worker import make_app


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

    def corrupt_lease(self, store: Store, worker: str) -> Iterator[None]:
        for value in ("NaN", "Infinity", "-Infinity"):
            self.client.execute("UPDATE celery_continuations_lease SET until = %s WHERE worker = %s", (value, worker))
            yield

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_entry_of_any_kind_harms_another_task(self, kind: str) -> None:
        harms_no_other_task(make_app(), self, kind)

    def break_connection(self, store: Store) -> None:
        end_others(self.client)
