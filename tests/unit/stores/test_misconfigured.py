"""What can never work is refused when a worker starts; whatever may pass is waited for."""

from __future__ import annotations

import logging
import ssl
from types import SimpleNamespace
from typing import Any

import pytest
import redis.exceptions as errors
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_continuations.bin import doctor
from celery_continuations.bin.doctor import examine
from celery_continuations.exceptions import StoreError
from celery_continuations.stores import open_store
from celery_continuations.stores.database import DatabaseStore
from celery_continuations.stores.factory import check_stores
from celery_continuations.stores.problems import UnstorableError
from celery_continuations.stores.redis import RedisStore

SECRET = "tomato-soup"


def app_with(store: str = "auto", **conf: Any) -> Celery:
    app = Celery("wrong", set_as_current=False)
    app.conf.update({"broker_url": "memory://", "continuation_store": store, **conf})
    return app


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@localhost:port/0",
        f"redis://:{SECRET}@localhost/notanumber",
        f"redis://:{SECRET}/x@localhost/0",
        f"redis://:{SECRET}@[localhost/0",
        f"rediss://:{SECRET}@localhost/0",
        f"rediss://:{SECRET}@localhost/0?ssl_cert_reqs=maybe",
        f"db+postgresql://me:{SECRET}@localhost:port/x",
        f"sentinel://:{SECRET}@localhost:26379/0",
    ],
)
@pytest.mark.parametrize("how", ["set", "auto"])
def test_a_url_that_cannot_be_used_is_refused_with_its_setting(url: str, how: str) -> None:
    app = app_with(url) if how == "set" else app_with(result_backend=url)
    with pytest.raises((ImproperlyConfigured, StoreError)) as caught:
        open_store(app, app.conf.continuation_store)
    assert isinstance(caught.value, StoreError) or "continuation_store" in str(caught.value)
    assert SECRET not in str(caught.value)
    [finding] = [one for one in examine(app) if one.level == "problem"]
    assert finding.name == "settings", "doctor prints no traceback"
    assert SECRET not in finding.text


@pytest.mark.parametrize(
    "broker_url", ["redis://a/0;redis://b/0", ["redis://a/0", "redis://b/0"], "rediss://a/0;rediss://b/0"]
)
def test_one_of_several_brokers_is_not_chosen(broker_url: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="cannot choose one of the 2 Redis servers in broker_url"):
        open_store(app_with(broker_url=broker_url), "auto")


def test_a_result_backend_is_chosen_with_several_brokers() -> None:
    app = app_with(broker_url="redis://a/0;redis://b/0", result_backend="redis://c/1")
    assert open_store(app, "auto").client.connection_pool.connection_kwargs["host"] == "c"


def test_a_list_with_one_broker_is_chosen() -> None:
    app = app_with(broker_url=["redis://only/3"])
    assert open_store(app, "auto").client.connection_pool.connection_kwargs["db"] == 3


@pytest.mark.parametrize("broker_url", ["rediss://localhost/2", "redis://localhost/2"])
@pytest.mark.parametrize(
    ("use_ssl", "expected"), [(True, ssl.CERT_REQUIRED), ({"ssl_cert_reqs": ssl.CERT_NONE}, ssl.CERT_NONE)]
)
def test_auto_uses_the_brokers_tls_settings(broker_url: str, use_ssl: Any, expected: Any) -> None:
    app = app_with(broker_url=broker_url, broker_use_ssl=use_ssl)
    pool = open_store(app, "auto").client.connection_pool
    assert pool.connection_class.__name__ == "SSLConnection"
    assert (pool.connection_kwargs["ssl_cert_reqs"], pool.connection_kwargs["db"]) == (expected, 2)


def test_auto_uses_the_brokers_sentinels() -> None:
    app = app_with(broker_url="sentinel://a:26379/1;sentinel://b:26379/1")
    with pytest.raises(ImproperlyConfigured, match="needs master_name in broker_transport_options"):
        open_store(app, "auto")
    app.conf.broker_transport_options = {"master_name": "primary"}
    pool = open_store(app, "auto").client.connection_pool
    assert pool.service_name == "primary"
    assert len(pool.sentinel_manager.sentinels) == 2


# -- servers


class Server:
    """A client of Redis whose server answers scripts with an error, or is in a cluster."""

    def __init__(self, error: Exception | None = None, cluster: int = 0) -> None:
        self.error = error
        self.cluster = cluster

    def info(self, section: str) -> dict[str, Any]:
        if isinstance(self.error, errors.ConnectionError):
            raise self.error
        return {"cluster_enabled": self.cluster}

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if self.error is not None:
            raise self.error
        return [b"1.0", [], [], []]


@pytest.fixture
def served(monkeypatch: Any) -> Any:
    def serve(server: Any) -> Celery:
        app = app_with("redis://localhost/0")
        store = RedisStore(server, "wrong")
        monkeypatch.setattr("celery_continuations.stores.factory.open_store", lambda app, setting: store)
        return app

    return serve


@pytest.mark.parametrize(
    ("server", "cause"),
    [
        (Server(cluster=1), "Redis Cluster is not supported"),
        (Server(errors.MovedError("3999 127.0.0.1:6381")), "Redis Cluster is not supported"),
        (Server(errors.ClusterCrossSlotError("Keys in request don't hash to the same slot")), "Redis Cluster"),
        (Server(errors.NoPermissionError("this user has no permissions to run the 'evalsha' command")), "permissions"),
        (Server(errors.ResponseError("unknown command 'EVALSHA'")), "enable EVAL and EVALSHA"),
        (Server(errors.AuthenticationError("invalid username-password pair")), "correct user and password"),
        (Server(errors.AuthenticationError("Authentication required.")), "correct user and password"),
        (Server(errors.ResponseError("DB index is out of range")), "correct the number of the database"),
    ],
)
def test_what_never_works_on_redis_is_refused_with_setting_and_cause(served: Any, server: Any, cause: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        check_stores(served(server))
    assert str(caught.value).startswith("continuation_store = 'redis://…' cannot be used: ")
    assert cause in str(caught.value)


def test_doctor_names_the_cause() -> None:
    server = Server(errors.NoPermissionError("this user has no permissions to run the 'evalsha' command"))
    [finding] = doctor._reach(RedisStore(server, "wrong"))
    assert (finding.level, finding.name) == ("problem", "reach")
    assert finding.text.startswith("The store can never work: ")
    assert finding.text.endswith("EVAL and EVALSHA among them")
    [finding] = doctor._reach(RedisStore(Server(errors.ConnectionError("refused")), "wrong"))
    assert finding.text.startswith("The store cannot be reached: ")


@pytest.mark.parametrize(
    "error",
    [
        errors.ReadOnlyError("READONLY You can't write against a read only replica."),
        errors.BusyLoadingError("LOADING Redis is loading the dataset in memory"),
        errors.OutOfMemoryError("OOM command not allowed when used memory > 'maxmemory'."),
        errors.MasterDownError("MASTERDOWN Link with MASTER is down"),
        errors.ResponseError("BUSY Redis is busy running a script."),
        errors.ResponseError("CLUSTERDOWN The cluster is down"),
        errors.MaxConnectionsError("max number of clients reached"),
        errors.ConnectionError("Error 111 connecting to localhost:1. Connection refused."),
        errors.TimeoutError("Timeout reading from socket"),
    ],
)
def test_what_may_pass_on_redis_is_waited_for(served: Any, error: Exception) -> None:
    check_stores(served(Server(error)))


@pytest.mark.parametrize(
    ("text", "is_lasting"),
    [
        ('connection failed: FATAL:  password authentication failed for user "me"', True),
        ('connection failed: FATAL:  database "progress" does not exist', True),
        ('connection failed: FATAL:  role "me" does not exist', True),
        ("permission denied for schema public", True),
        ("no pg_hba.conf entry for host", True),
        ("unable to open database file", True),
        ("FATAL:  sorry, too many clients already", False),
        ("cannot execute INSERT in a read-only transaction", False),
        ("could not extend file: No space left on device", False),
        ("the database system is starting up", False),
        ("connection refused", False),
        ("database is locked", False),
        ('relation "continuation_record" does not exist', False),
    ],
)
def test_what_never_works_on_a_database(text: str, is_lasting: bool, monkeypatch: Any) -> None:
    def scan(*args: Any, **kwargs: Any) -> Any:
        try:
            raise ValueError(text)
        except ValueError as exc:
            raise StoreError("database", "OperationalError") from exc

    app = app_with("file:///nowhere")
    store = SimpleNamespace(check=scan)
    monkeypatch.setattr("celery_continuations.stores.factory.open_store", lambda app, setting: store)
    if not is_lasting:
        return check_stores(app)
    with pytest.raises(ImproperlyConfigured, match="continuation_store = 'file://…' cannot be used: "):
        check_stores(app)


def test_a_sqlite_file_in_a_missing_folder_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="the folder must exist"):
        check_stores(app_with(f"db+sqlite:///{tmp_path}/missing/progress.db"))


# -- a task's own data


IDS = ["x" * 256, "a\0b", "a\ud800b"]


@pytest.mark.parametrize("task_id", IDS, ids=["too long", "NUL", "a surrogate"])
def test_an_id_that_the_store_cannot_keep_fails_its_task(
    app: Celery, worker: Any, task: Any, tmp_path: Any, monkeypatch: Any, caplog: Any, task_id: str
) -> None:
    """It went round every five seconds, as if the store were unavailable."""

    def body(self: Any) -> None:
        ran.append(1)

    ran: list[int] = []
    made = task(body, continuation_store=f"db+sqlite:///{tmp_path}/progress.db")
    made.apply_async()
    delivery = worker.deliver_nothing()
    delivery.message.headers["id"] = task_id
    failed: list[Any] = []
    monkeypatch.setattr(app.backend, "mark_as_failure", lambda *args, **kwargs: failed.append(args[1]))
    caplog.set_level(logging.CRITICAL, "celery.app.trace")  # pytest-xdist cannot send a surrogate
    worker.execute(delivery)
    assert [type(error) for error in failed] == [UnstorableError]
    assert (ran, worker.queued()) == ([], 0)


@pytest.mark.parametrize("task_id", IDS)
def test_no_command_stores_such_an_id(tmp_path: Any, task_id: str) -> None:
    store = DatabaseStore(f"sqlite:///{tmp_path}/progress.db", "service")
    with pytest.raises(UnstorableError):
        store.read(task_id)
