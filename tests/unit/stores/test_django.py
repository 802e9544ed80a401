"""The store on Django's ORM, on SQLite, and settings read from a Django project."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from django.db import connections, transaction

from celery_continuations import StoreError, conf
from celery_continuations.stores import Fence, Status, Store, Update, open_store
from celery_continuations.stores.factory import without_store
from celery_continuations.testing.stores import StoreConformance
from tests.support.django_project import threads_close_connections
from tests.support.unreadable import KINDS, harms_no_other_task
from tests.support.worker import make_app


class TestDjangoStoreOnSQLite(StoreConformance):
    many = 300

    @pytest.fixture(autouse=True)
    def file(self, django_database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        threads_close_connections(monkeypatch)
        self.path = django_database
        monkeypatch.setattr("celery_continuations.stores.sql._CLEAN_EVERY", 0.01)

    def make_store(self, namespace: str) -> Store:
        from celery_continuations.stores.django import DjangoStore

        return DjangoStore("default", namespace)

    def corrupt(self, store: Store, task_id: str) -> None:
        with connections["default"].cursor() as cursor:
            cursor.execute("UPDATE celery_continuations_record SET fence = 'nonsense' WHERE task_id = %s", [task_id])

    def corrupt_lease(self, store: Store, worker: str) -> Iterator[None]:
        for value in ("'soon'", "x'ff'", "9e999"):
            with connections["default"].cursor() as cursor:
                cursor.execute(f"UPDATE celery_continuations_lease SET until = {value} WHERE worker = %s", [worker])
            yield

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_entry_of_any_kind_harms_another_task(self, app: Celery, worker: Any, kind: str) -> None:
        harms_no_other_task(app, self, kind)

    def entries(self, store: Store) -> int:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM celery_continuations_record")
            return int(cursor.fetchone()[0])

    def connections(self, store: Store) -> int:
        return len(os.listdir("/proc/self/fd"))


def test_settings_of_django_arrive() -> None:
    app = Celery(set_as_current=False)
    app.config_from_object(SimpleNamespace(CELERY_CONTINUATION_MAX_RUNTIME=60), namespace="CELERY")
    assert conf.app_setting(app, "max_runtime") == 60
    conf.validate(app)


@pytest.mark.parametrize("name", conf.SETTINGS)
def test_each_setting_of_django_arrives(name: str) -> None:
    app = Celery(set_as_current=False)
    value = object()
    app.config_from_object(SimpleNamespace(**{f"CELERY_CONTINUATION_{name.upper()}": value}), namespace="CELERY")
    assert conf.app_setting(app, name) is value


def test_a_worker_s_lease_goes_in_one_statement_and_only_if_it_owns_nothing(django_database: Path) -> None:
    from django.test.utils import CaptureQueriesContext

    from celery_continuations.stores.django import DjangoStore

    store = DjangoStore("default", "service")
    store.renew("w", 10)
    store.compare_and_swap("a", None, Update(fence := Fence(1, Status.RUNNING, "w/1/a")))
    with CaptureQueriesContext(connections["default"]) as queries:
        store.retire("w")
    assert len(queries) == 1
    assert [lease.worker for lease in store.scan().leases] == ["w"]
    store.compare_and_swap("a", fence, Update(fence, expires_in=0))
    store.retire("w")
    assert store.scan().leases == []


@pytest.mark.parametrize(("name", "value"), [("CONTINUATION_MAX_RUNTIME", 0), ("CONTINUATION_MAX_RUNTIMES", 60)])
def test_wrong_settings_of_django_are_refused(name: str, value: int) -> None:
    app = Celery(set_as_current=False)
    app.config_from_object(SimpleNamespace(**{f"CELERY_{name}": value}), namespace="CELERY")
    with pytest.raises(ImproperlyConfigured, match=rf"(?i){name}\b"):
        conf.validate(app)


@pytest.mark.parametrize("setting", ["django", "django://default"])
def test_a_setting_opens_the_store(setting: str) -> None:
    app = make_app()
    assert type(open_store(app, setting)).__name__ == "DjangoStore"


def test_auto_chooses_it_beside_django_db() -> None:
    app = Celery("auto", broker="amqp://", backend="django-db", set_as_current=False)
    assert type(open_store(app, "auto")).__name__ == "DjangoStore"
    assert without_store(app) is None


def test_an_item_and_its_cursor_in_one_transaction(django_database: Path) -> None:
    from celery_continuations.stores.django import DjangoStore

    connections.settings["other"] = {**connections.settings["default"], "NAME": str(django_database)}
    store = DjangoStore("default", "service")
    connection = connections["default"]
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        within = store.within(connection.connection)
        assert within.compare_and_swap("a", None, Update(Fence(1, Status.RUNNING, "w/1/a")))
        assert within.read("a") is not None
        raise ZeroDivisionError
    assert store.read("a") is None
    connections["other"].ensure_connection()
    with pytest.raises(StoreError, match="the alias of the database in which the records are, which is 'default'"):
        store.within(connections["other"].connection)
    connections["other"].close()
    del connections["other"], connections.settings["other"]


def test_a_store_that_is_closed_leaves_an_open_transaction_alone(django_database: Path) -> None:
    from celery_continuations.stores.django import DjangoStore

    store = DjangoStore("default", "service")
    with transaction.atomic():
        store.compare_and_swap("a", None, Update(Fence(1, Status.RUNNING, "w/1/a")))
        store.close()
    assert store.read("a") is not None
    store.close()
    assert connections["default"].connection is None
