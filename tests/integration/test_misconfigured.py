"""A worker that can never work with its store says why, and ends; an outage while it runs is waited for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from celery_continuations.stores import Fence, Status, Update, open_store
from celery_continuations.stores.factory import check_stores
from tests.support import servers
from tests.support.processes import LocalProcess, await_condition, free_port

pytestmark = pytest.mark.redis

SECRET = "tomato-soup"


@pytest.fixture
def of_store(tmp_path: Path, request: Any) -> Iterator[Any]:
    """A Redis server for the store alone."""
    folder = tmp_path / "store"
    folder.mkdir()
    server = servers.start_redis(folder, *getattr(request, "param", ()))
    yield server
    server.end()


def refused(cluster: Any, store: str) -> str:
    worker = cluster.start_worker(continuation_store=store)
    worker.await_exit()
    log = str(worker.text)
    assert "ImproperlyConfigured" in log
    assert "continuation_store = 'redis://…' cannot be used: " in log
    assert SECRET not in log
    return log


@pytest.mark.parametrize("of_store", [("--cluster-enabled", "yes")], indirect=True)
def test_a_server_of_a_cluster_is_refused(on_redis: Any, of_store: Any) -> None:
    assert "Redis Cluster is not supported" in refused(on_redis, f"redis://127.0.0.1:{of_store.port}/0")


def test_a_user_that_may_not_run_scripts_is_refused(on_redis: Any, of_store: Any) -> None:
    client = Redis(port=of_store.port)
    client.execute_command("ACL", "SETUSER", "plain", "on", f">{SECRET}", "~*", "&*", "+@all", "-@scripting")
    assert "EVAL and EVALSHA" in refused(on_redis, f"redis://plain:{SECRET}@127.0.0.1:{of_store.port}/0")


def test_a_wrong_password_is_refused_when_a_worker_starts(on_redis: Any, of_store: Any) -> None:
    log = refused(on_redis, f"redis://stranger:{SECRET}@127.0.0.1:{of_store.port}/0")
    assert "correct user and password" in log


@pytest.mark.parametrize("outage", ["read only", "rotated password"])
def test_what_may_pass_is_waited_for_and_logged_when_it_begins_and_ends(
    on_redis: Any, of_store: Any, outage: str
) -> None:
    client = Redis(port=of_store.port)
    store = f"redis://app:{SECRET}@127.0.0.1:{of_store.port}/0"
    client.execute_command("ACL", "SETUSER", "app", "on", f">{SECRET}", "~*", "&*", "+@all")
    on_redis.conf["continuation_store"] = store
    worker = on_redis.worker("-c", "1")
    if outage == "read only":
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
    else:
        client.execute_command("ACL", "SETUSER", "app", "off", f"<{SECRET}")
        client.execute_command("CLIENT", "KILL", "USER", "app")
    worker.await_log("lease could not be renewed")
    result = on_redis.send("rows", 5, 0.01)
    worker.await_log("the claim failed; trying again in 5 s", times=2)
    if outage == "read only":
        client.execute_command("REPLICAOF", "NO", "ONE")
    else:
        client.execute_command("ACL", "SETUSER", "app", "on", f">{SECRET}")
    assert result.get(timeout=30) == 5
    worker.await_log("lease is renewed again")
    lines = worker.text.splitlines()
    begins = [line for line in lines if "lease could not be renewed" in line]
    claims = [line for line in lines if "the claim failed" in line]
    assert len(begins) == 1
    assert [": WARNING/" in line for line in claims] == [True] + [False] * (len(claims) - 1)
    assert sum("the store failed for" in line for line in lines) == 1
    await_condition(lambda: open_store(on_redis.client, store).read(result.id) is not None, "a record")


def test_the_store_of_a_sentinel_broker(of_store: Any, tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"port {port}\nsentinel monitor primary 127.0.0.1 {of_store.port} 1\n")
    sentinel = LocalProcess(["redis-server", str(config), "--sentinel"], tmp_path, name="sentinel", port=port)
    sentinel.await_log("+monitor master primary")
    app = Celery("watched", broker=f"sentinel://127.0.0.1:{port}/0", set_as_current=False)
    app.conf.broker_transport_options = {"master_name": "primary"}
    try:
        check_stores(app)
        store = open_store(app, "auto")
        assert store.compare_and_swap("id", None, Update(Fence(1, Status.WAITING)))
        assert Redis(port=of_store.port).dbsize() > 0
        store.close()
    finally:
        sentinel.end()
