"""A user of Redis with the rights that the page names: all works, and nothing else is reached."""

from __future__ import annotations

import hashlib
import re
import signal
import uuid
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from celery_continuations import StoreError, callbacks
from celery_continuations.stores import Fence, Status, Update
from celery_continuations.stores.redis import RedisStore
from tests.support import servers
from tests.support.cluster import Cluster, redis_conf
from tests.support.processes import await_condition

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


class User(NamedTuple):
    """A user of a Redis server, and who may look after it."""

    name: str
    url: str
    admin: Redis

    def denied(self) -> list[str]:
        """What the user was denied; some servers do not know how a client introduces itself."""
        found = [one["object"] for one in self.admin.acl_log() if one["username"] == self.name]
        return [one for one in found if not one.startswith("client|")]


@pytest.fixture
def user(redis_server: servers.LocalRedis) -> Iterator[User]:
    admin = Redis(port=redis_server.port, decode_responses=True)
    name, namespace = f"user{uuid.uuid4().hex[:8]}", "the service"
    (text,) = re.findall(r"```text\n(continuations on .*?)```", PAGE.read_text(), re.DOTALL)
    digest = hashlib.sha256(namespace.encode()).hexdigest()[:10]
    words = text.replace("DIGEST", digest).replace("PASSWORD", "pass").split()
    admin.execute_command("ACL SETUSER", name, *words[1:])
    admin.acl_log_reset()
    yield User(name, f"redis://{name}:pass@127.0.0.1:{redis_server.port}/2", admin)
    admin.acl_deluser(name)
    Redis(port=redis_server.port, db=2).flushdb()


@pytest.fixture
def limited(make_cluster: Callable[..., Cluster], redis_server: servers.LocalRedis, user: User) -> Cluster:
    return make_cluster(
        **redis_conf(redis_server),
        continuation_store=user.url,
        continuation_namespace="the service",
        continuation_lease=2,
        continuation_sweep_interval=0.3,
        continuation_checkpoint_interval=0,
        continuation_callback_url="http://localhost/callbacks",
        continuation_callback_secret="only for a test of 32 characters or more",
        test_overdue_after=3.0,
    )


def post(app: Any, address: str, body: bytes) -> str:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/" + address.rpartition("/")[2],
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": BytesIO(body),
    }
    setup_testing_defaults(environ)
    statuses: list[str] = []
    b"".join(callbacks.wsgi(app)(environ, lambda status, headers: statuses.append(status)))
    return statuses[0]


def test_a_user_with_these_rights_can_do_all_that_a_service_does(limited: Cluster, user: User) -> None:
    stopped = limited.worker()
    rows = limited.send("gated", 6, 2)
    limited.trace.await_items(2)
    stopped.kill(signal.SIGTERM)
    stopped.await_exit()
    assert rows.state == "RETRY"
    killed = limited.worker()
    limited.trace.path.with_name("gate").touch()
    assert rows.get(timeout=30) == 6

    limited.trace.path.with_name("gate").unlink()
    lost = limited.send("gated", 8, 7)
    limited.trace.await_items(13)
    killed.signal_group(signal.SIGKILL)
    limited.trace.path.with_name("gate").touch()
    limited.worker("-c", "2")
    assert lost.get(timeout=30) == 8
    assert limited.send("napping", 0.5).get(timeout=30) >= 0.5

    asking, cancelled = limited.send("asking_one"), limited.send("asking_one")
    for one in (asking, cancelled):
        await_condition(lambda one=one: one.status_of_record == "waiting", "the task waits")
    address = callbacks.callback_url(limited.client, asking.id, "approval")
    asking.pause()
    asking.resume()
    assert post(limited.client, address, b'{"by": "ann"}').startswith("204")
    assert asking.get(timeout=30) == {"by": "ann"}
    cancelled.cancel()
    await_condition(lambda: cancelled.state == "REVOKED", "the task is cancelled")
    assert limited.send("gathering", [["plain", 1], ["rows", 2]]).get(timeout=30) == [1, 2]

    assert user.denied() == []
    assert not [one for one in limited.processes if "NOPERM" in one.text]


def test_nothing_else_is_reached(user: User) -> None:
    fence = Fence(1, Status.RUNNING, "w/1/a")
    other = RedisStore(Redis(port=user.admin.get_connection_kwargs()["port"], db=2), "another service")
    assert other.compare_and_swap("id", None, Update(fence, "snapshot", "message"))
    client = Redis.from_url(user.url)
    own, theirs = RedisStore(client, "the service"), RedisStore(client, "another service")
    assert own.compare_and_swap("id", None, Update(fence, "snapshot", "message"))
    uses: list[Callable[[], object]] = [
        lambda: theirs.read("id"),
        lambda: theirs.compare_and_swap("id", fence, Update(fence, expires_in=0)),
        lambda: theirs.compare_and_swap("new", None, Update(fence, "snapshot", "message")),
        lambda: theirs.take("id", fence, fence._replace(generation=2)),
        lambda: theirs.renew("w", 10),
        lambda: theirs.retire("w"),
        lambda: theirs.scan("w"),
        lambda: list(theirs.records()),
        lambda: list(own.records()),
    ]
    for use in uses:
        with pytest.raises(StoreError, match="NoPermissionError"):
            use()
    for command in (
        "GET celery-task-meta-x", "SET x y", "KEYS *", "SCAN 0", "FLUSHDB", "CONFIG GET *", "ACL LIST", "SCRIPT FLUSH",
        "EVAL return(redis.call('GET','x')) 0", "PUBLISH x y", "SUBSCRIBE x", "MONITOR", "DEL x", "COPY x y",
    ):  # fmt: skip
        with pytest.raises(ResponseError, match="no permissions|can't access"):
            client.execute_command(*command.split())
    assert other.read("id") == own.read("id")
    assert [lease.worker for lease in other.scan().leases] == ["w"]
    for store in (own, other):
        store.close()
