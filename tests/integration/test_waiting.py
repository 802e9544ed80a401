"""Waiting and operator commands on real workers and servers: without messages, through kills and restarts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from redis import Redis

from celery_continuations import ContinuableAsyncResult, DeliveryError, WaitTimeout
from tests.support import servers
from tests.support.cluster import (
    Cluster,
    defaults,
    filesystem_conf,
    rabbitmq_conf,
    redis_conf,
    redis_url,
)
from tests.support.processes import LocalProcess, await_condition

SOON = {
    "continuation_lease": 2,
    "continuation_sweep_interval": 0.3,
    "continuation_checkpoint_interval": 0,
    "continuation_resume_errors_after_advancing": False,
    "test_overdue_after": 3.0,
}
STORES = ["redis", "rabbitmq and postgresql", "filesystem"]


def on_postgres(server: LocalProcess) -> dict[str, Any]:
    return {"continuation_store": f"db+postgresql+psycopg://test@127.0.0.1:{server.port}/postgres"}


def conf_of(name: str, request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    if name == "filesystem":
        return filesystem_conf(folder)
    redis = request.getfixturevalue("redis_server")
    if name == "redis":
        return redis_conf(redis)
    rabbitmq, postgres = (request.getfixturevalue(f"{one}_server") for one in ("rabbitmq", "postgres"))
    return {**rabbitmq_conf(rabbitmq, redis), **on_postgres(postgres)}


@pytest.fixture(scope="module", params=STORES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster for each store, with one worker of one process, which several tests share."""
    folder = tmp_path_factory.mktemp("site")
    cluster = Cluster(defaults(**conf_of(request.param, request, folder), **SOON), folder)
    cluster.worker("-c", "1")
    yield cluster
    cluster.end()


def await_waiting(result: Any, key: str | None = None) -> Any:
    def waits() -> Any:
        return result.status_of_record == "waiting" and (key is None or result.waiting.key == key)

    await_condition(waits, f"{result.id} waits for {key}")
    return result.waiting


def traced(cluster: Any, word: str, task_id: str) -> list[list[str]]:
    return [line for line in cluster.trace.lines(word) if line[1] == task_id]


def await_runs(cluster: Any, result: Any, count: int) -> None:
    await_condition(lambda: len(traced(cluster, "run", result.id)) >= count, f"{count} runs of {result.id}")


# -- deliveries


def test_delivered_before_the_task_starts(site: Any) -> None:
    holding = site.send("asking_late", str(site.folder / "held"))
    await_runs(site, holding, 1)
    result = site.send("asking_one")  # behind the one that holds the only process
    result.deliver("approval", {"by": "ann"})
    holding.deliver("approval", "held")
    (site.folder / "held").touch()
    assert (holding.get(timeout=30), result.get(timeout=30)) == ("held", {"by": "ann"})
    assert len(traced(site, "run", result.id)) == 1
    await_condition(lambda: result.status_of_record == "done", "the record's end")


def test_delivered_before_the_wait(site: Any) -> None:
    result = site.send("asking_late", str(site.folder / "begun"))
    await_runs(site, result, 1)
    result.deliver("approval", "early")
    (site.folder / "begun").touch()
    assert result.get(timeout=30) == "early"
    assert len(traced(site, "run", result.id)) == 1


def test_delivered_while_it_waits(site: Any) -> None:
    result = site.send("asking_one")
    await_waiting(result, "approval")
    assert result.state == "RETRY"
    assert site.send("plain", 1).get(timeout=30) == 1, "the only process is free"
    result.deliver("approval", {"by": ["ann", 7]})
    assert result.get(timeout=30) == {"by": ["ann", 7]}
    assert len(traced(site, "before", result.id)) == len(traced(site, "after", result.id)) == 1


def test_several_waits_in_one_task(site: Any) -> None:
    result = site.send("asking", ["one", "two", "three"])
    await_waiting(result, "one")
    result.deliver("three", 3)
    for number, name in enumerate(["one", "two"], 1):
        await_waiting(result, name)
        result.deliver(name, number)
    assert result.get(timeout=30) == [1, 2, 3]


def test_of_deliveries_at_once_one_is_accepted(site: Any) -> None:
    def deliver(payload: int) -> bool:
        start.wait()
        try:
            result.deliver("approval", payload)
        except DeliveryError:
            return False
        return True

    for _ in range(3):
        start = threading.Barrier(8)
        result = site.send("asking_one")
        await_waiting(result, "approval")
        with ThreadPoolExecutor(8) as pool:
            accepted = list(pool.map(deliver, range(8)))
        assert accepted.count(True) == 1
        assert result.get(timeout=30) == accepted.index(True)


def test_a_timeout_against_a_delivery_has_one_outcome(site: Any) -> None:
    count = 30
    results = [site.send("asking_one", "approval", 1.5, "timed out") for _ in range(count)]

    def deliver(number: int) -> bool:
        result = results[number]
        # from before the end of the wait to after a sweep has resumed it
        moment = await_waiting_or_over(result) + 1.5 * (number / count - 0.3)
        time.sleep(max(0.0, moment - time.time()))
        try:
            result.deliver("approval", number)
        except DeliveryError:
            return False
        return True

    with ThreadPoolExecutor(count) as pool:
        accepted = list(pool.map(deliver, range(count)))
    found = [result.get(timeout=30) for result in results]
    assert found == [number if accepted[number] else "timed out" for number in range(count)]
    for result in results:
        assert len(traced(site, "after", result.id)) == 1


def await_waiting_or_over(result: Any) -> float:
    """Return the time at which the wait ends or has ended."""

    def until() -> float | None:
        snapshot = result.snapshot()
        if result.status_of_record == "done":
            return time.time()
        return snapshot.waiting.until if snapshot and snapshot.waiting else None

    return float(await_condition(until, "the wait"))


def test_nothing_comes_in_time(site: Any) -> None:
    result = site.send("asking_one", "approval", 0.2)
    with pytest.raises(WaitTimeout, match="nothing was delivered to 'approval' in time"):
        result.get(timeout=30)
    await_condition(lambda: result.status_of_record == "failed", "the record's end")
    with pytest.raises(DeliveryError, match="it has failed"):
        result.deliver("approval", "late")


def test_waits_in_a_chords_header(site: Any) -> None:
    header = [site.sig("asking_one"), site.sig("plain", 10), site.sig("asking_one")]
    body = chord(header, site.sig("total"), app=site.client).apply_async()
    first, _, third = (ContinuableAsyncResult(one.id, app=site.client) for one in body.parent.results)
    for result, payload in ((third, 3), (first, 1)):
        await_waiting(result, "approval")
        result.deliver("approval", payload)
    assert body.get(timeout=30) == 14
    assert [" ".join(line[1:]) for line in site.trace.lines("total")] == ["[1, 10, 3]"]


# -- times, and the results of other tasks


def test_sleep_and_resume_in(site: Any) -> None:
    nap, back = site.send("napping", 0.5), site.send("coming_back")
    assert nap.get(timeout=30) >= 0.5
    assert back.get(timeout=30) == 4
    assert [int(line[2]) for line in traced(site, "page", back.id)] == [0, 1, 2, 2, 3]
    assert len(traced(site, "run", nap.id)) == len(traced(site, "run", back.id)) == 2


def test_wait_until(site: Any, tmp_path: Path) -> None:
    result, late = site.send("polling", str(tmp_path / "file")), site.send("polling", str(tmp_path / "none"), 0.5)
    await_runs(site, result, 3)
    (tmp_path / "file").touch()
    assert result.get(timeout=30) == "there"
    with pytest.raises(WaitTimeout):
        late.get(timeout=30)


def test_one_process_is_enough_for_a_parent_and_its_children(site: Any) -> None:
    children = [("plain", 1), ("quick", 2), ("stuttering", 3), ("napping", 0.1)]
    result = site.send("gathering", children)
    values = result.get(timeout=30)
    assert values[:3] == [1, 2, 3]
    assert values[3] >= 0.1
    nested = site.send("gathering", [("gathering", [("plain", 2), ("quick", 3)])])
    assert nested.get(timeout=30) == [[2, 3]]


def test_a_child_that_fails_fails_its_parent(site: Any) -> None:
    result = site.send("gathering", [("plain", 1), ("failing", "no luck"), ("quick", 2)])
    with pytest.raises(Exception, match="no luck"):
        result.get(timeout=30)


def test_a_child_that_stores_no_result_ends_the_wait(site: Any) -> None:
    assert site.send("gathering", [("ignoring", "returns")]).get(timeout=30) == ["returns"]
    for how, name in (("ignores", "Ignore"), ("rejects", "Reject")):
        result = site.send("gathering", [("ignoring", how)])
        with pytest.raises(Exception, match=f"raised {name}, without a result"):
            result.get(timeout=30)


@pytest.mark.parametrize("site", ["redis"], indirect=True)
def test_the_last_part_of_a_canvas_wakes_the_parent(site: Any) -> None:
    """Without it the parent would look after a minute."""
    sig, app = site.sig, site.client
    totals = [
        (chain(sig("plain", 1), sig("plain", 2, immutable=True), app=app), 2),
        (chord([sig("plain", 1), sig("plain", 2)], sig("total"), app=app), 3),
        (chain(group(sig("plain", 1), sig("plain", 2), app=app), sig("total"), app=app), 3),
    ]
    sent = [(site.send("gathering_canvas", dict(canvas)), expected) for canvas, expected in totals]
    for result, expected in sent:
        assert result.get(timeout=40) == expected
    failing = [
        chain(sig("failing", "no luck"), sig("plain"), sig("plain"), app=app),
        chord([sig("failing", "no luck"), sig("plain", 2)], sig("total"), app=app),
        chord([sig("plain", 2), sig("plain", 1)], chain(sig("total"), sig("failing"), app=app), app=app),
    ]
    for result in [site.send("gathering_canvas", dict(canvas)) for canvas in failing]:
        with pytest.raises(Exception, match=r"no luck|3"):
            result.get(timeout=40)


# -- steering


def test_pause_and_resume_of_a_running_task(site: Any) -> None:
    known = len(site.trace.lines("item"))
    result = site.send("rows", 60, 0.02)
    site.trace.await_items(known + 5)
    result.pause()
    await_condition(lambda: result.status_of_record == "paused", "the pause")
    assert site.send("plain", 1).get(timeout=30) == 1
    result.resume()
    assert result.get(timeout=30) == 60
    assert site.trace.items()[known:] == list(range(60))


def test_cancel_of_a_running_and_of_a_waiting_task(site: Any) -> None:
    waiting = site.send("asking_one")
    await_waiting(waiting)
    known = len(site.trace.lines("item"))
    running = site.send("rows", 1000, 0.02)
    site.trace.await_items(known + 3)
    for result in (running, waiting):
        result.cancel()
        await_condition(lambda: result.state == "REVOKED", "the state REVOKED")  # noqa: B023
        await_condition(lambda: result.status_of_record == "cancelled", "the record's end")  # noqa: B023
        with pytest.raises(DeliveryError, match="it was cancelled"):
            result.deliver("approval", 1)
    assert site.send("plain", 1).get(timeout=30) == 1


def test_retry_of_a_failed_task(site: Any, tmp_path: Path) -> None:
    result = site.send("mended", str(tmp_path / "file"))
    with pytest.raises(Exception, match="No such file"):
        result.get(timeout=30)
    await_condition(lambda: result.status_of_record == "failed", "the record's end")
    (tmp_path / "file").touch()
    result.retry()
    assert result.get(timeout=30) == "mended"
    assert len(traced(site, "before", result.id)) == 1


@pytest.mark.parametrize("is_waiting", [True, False], ids=["waiting", "running"])
def test_a_chord_fails_whose_member_is_cancelled(site: Any, is_waiting: bool) -> None:
    member = site.sig("asking_one") if is_waiting else site.sig("rows", 1000, 0.02)
    body = chord([member, site.sig("plain", 10)], site.sig("total"), app=site.client).apply_async()
    before = site.trace.lines("total")
    result = ContinuableAsyncResult(body.parent.results[0].id, app=site.client)
    if is_waiting:
        await_waiting(result)
    else:
        await_runs(site, result, 1)
    result.cancel()
    await_condition(lambda: body.state == "FAILURE", "the failure of the body")
    assert "TaskRevokedError" in str(body.result)
    assert (result.state, site.trace.lines("total")) == ("REVOKED", before)


def test_a_waiting_task_that_celery_revokes_ends_at_once(site: Any) -> None:
    result = site.send("asking_one")
    await_waiting(result)
    site.client.control.revoke(result.id)
    await_condition(lambda: result.status_of_record == "cancelled", "the record's end")
    await_condition(lambda: result.state == "REVOKED", "the state REVOKED")
    with pytest.raises(DeliveryError, match="it was cancelled"):
        result.deliver("approval", "yes")
    assert traced(site, "after", result.id) == []


# -- kills and restarts


@pytest.fixture(params=STORES)
def cluster(request: pytest.FixtureRequest, make_cluster: Callable[..., Cluster], tmp_path: Path) -> Cluster:
    """A cluster on each store, without a worker."""
    return make_cluster(**conf_of(request.param, request, tmp_path), **SOON)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_a_wait_outlives_every_worker(cluster: Any, number: str) -> None:
    first = cluster.worker("-c", "1")
    result = cluster.send("asking_one")
    await_waiting(result)
    first.kill(number)
    first.await_exit()
    result.deliver("approval", "yes")
    cluster.worker("-c", "1")
    assert result.get(timeout=30) == "yes"
    assert len(traced(cluster, "before", result.id)) == 1
    assert len(traced(cluster, "run", result.id)) == 2


@pytest.mark.parametrize("whom", ["child", "worker"])
@pytest.mark.parametrize("point", ["leaving", "left"])
def test_killed_while_it_begins_to_wait(on_redis: Any, point: str, whom: str) -> None:
    on_redis.worker("-c", "1", **SOON, test_point=(point, whom))
    result = on_redis.send("asking_one")
    on_redis.trace.await_items(1, "point")
    assert result.state == "RETRY"
    if whom == "worker":
        on_redis.worker("-c", "1", **SOON)
    if point == "leaving":
        await_runs(on_redis, result, 2)
    await_waiting(result, "approval")
    result.deliver("approval", "yes")
    assert result.get(timeout=30) == "yes"
    assert len(traced(on_redis, "before", result.id)) == len(traced(on_redis, "after", result.id)) == 1


@pytest.mark.parametrize("point", ["leaving", "left"])
def test_delivered_while_it_begins_to_wait(on_redis: Any, point: str) -> None:
    on_redis.worker("-c", "1", **SOON, test_point=(point, "wait"))
    result = on_redis.send("asking_one")
    on_redis.trace.await_items(1, "point")
    result.deliver("approval", "yes")
    Path(f"{on_redis.trace.path}.{point}.go").touch()
    assert result.get(timeout=30) == "yes"
    assert len(traced(on_redis, "run", result.id)) == 2


def test_a_pause_outlives_the_worker_that_was_to_heed_it(cluster: Any) -> None:
    first = cluster.worker("-c", "1", continuation_checkpoint_interval=60)
    result = cluster.send("rows", 30, 0.3)
    cluster.trace.await_items(2)
    result.pause()
    first.kill()
    cluster.worker("-c", "1")
    await_condition(lambda: result.status_of_record == "paused", "the pause")
    assert cluster.send("plain", 1).get(timeout=30) == 1
    assert len(traced(cluster, "run", result.id)) == 1
    result.cancel()
    await_condition(lambda: result.state == "REVOKED", "the state REVOKED")


@pytest.fixture
def durable_redis(tmp_path: Path) -> Iterator[servers.LocalRedis]:
    process = servers.start_redis(tmp_path, durable=True)
    yield servers.LocalRedis(process)
    process.end()


def test_a_wait_outlives_redis(make_cluster: Any, durable_redis: Any) -> None:
    cluster = make_cluster(**redis_conf(durable_redis), **SOON)
    cluster.worker("-c", "1")
    result, timed = cluster.send("asking_one"), cluster.send("napping", 3)
    await_waiting(result)
    await_waiting(timed)
    restart(durable_redis._container, "Ready to accept connections")
    assert result.status_of_record == "waiting"
    result.deliver("approval", "yes")
    assert result.get(timeout=30) == "yes"
    assert timed.get(timeout=30) >= 3


def test_a_wait_outlives_postgres(make_cluster: Any, redis_server: Any, postgres_server: LocalProcess) -> None:
    cluster = make_cluster(**redis_conf(redis_server), **on_postgres(postgres_server), **SOON)
    cluster.worker("-c", "1")
    result, timed = cluster.send("asking_one"), cluster.send("napping", 3)
    await_waiting(result)
    await_waiting(timed)
    restart(postgres_server, "database system is ready to accept connections")
    result.deliver("approval", "yes")
    assert result.get(timeout=30) == "yes"
    assert timed.get(timeout=30) >= 3


def restart(server: LocalProcess, ready: str) -> None:
    """Kill a server, and start it again on the same port and files."""
    starts = server.text.count(ready)
    server.kill()

    def restarted() -> bool:
        if server.process.poll() is not None:  # the last processes of PostgreSQL may still be running
            server.start()
        return server.text.count(ready) > starts

    await_condition(restarted, ready)


# -- what waiting costs


def test_an_idle_worker_asks_its_store_no_more_when_many_tasks_wait(make_cluster: Any, redis_server: Any) -> None:
    # With less than the maintenance tick, each tick sweeps, and the count does not vary.
    conf = {**SOON, "continuation_sweep_interval": 0.2, "continuation_store": redis_url(redis_server, 2)}
    cluster = make_cluster(**redis_conf(redis_server), **conf)
    cluster.worker("-c", "1")

    def looks(client: Any) -> int:
        return sum(stats["calls"] for name, stats in client.info("commandstats").items() if "eval" in name)

    def looks_in(seconds: float) -> int:
        before, until = looks(client), time.monotonic() + seconds
        await_condition(lambda: time.monotonic() > until, "the time")
        return looks(client) - before

    with Redis(port=redis_server.port) as client:
        none = looks_in(4)
        results = [cluster.send("asking_one") for _ in range(100)]
        for result in results:
            await_waiting(result)
        many = looks_in(4)
    assert none > 8
    assert abs(many - none) <= 3


# -- quiet


def test_a_deploy_and_a_thousand_waits_log_no_warning(on_redis: Cluster) -> None:
    conf = {"continuation_sweep_interval": 0.3, "worker_prefetch_multiplier": 4}
    first = on_redis.worker("-c", "2", **conf)
    rows = on_redis.send("rows", 200, 0.05)
    waiting = [on_redis.send("waits") for _ in range(250)]  # four waits each
    on_redis.trace.await_items(8)
    second = on_redis.worker("-c", "2", **conf)  # a deploy
    first.kill("SIGTERM")
    first.await_exit()
    assert [one.get(timeout=120) for one in waiting] == ["none"] * len(waiting)
    assert rows.get(timeout=60) == 200
    assert on_redis.trace.items() == list(range(200))
    second.kill("SIGTERM")
    second.await_exit()
    loud = [
        line
        for worker in (first, second)
        for line in worker.text.splitlines()
        if any(level in line for level in ("WARNING", "ERROR", "CRITICAL"))
        # kombu's own line, of a message that Redis hands to a worker which has just stopped consuming
        and "Requeuing undeliverable message" not in line
    ]
    assert loud == []
