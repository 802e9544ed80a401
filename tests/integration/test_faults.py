"""Faults at chosen points: processes killed and frozen, servers cut off, refused, stalled, emptied."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chord
from redis import Redis

from celery_continuations.stores import open_store
from tests.support.cluster import redis_conf, redis_url
from tests.support.processes import LocalProcess, await_condition
from tests.support.proxy import Proxy

COUNT = 40
SOON = {
    "continuation_lease": 2,
    "continuation_sweep_interval": 1,
    "continuation_checkpoint_interval": 0,
    "test_overdue_after": 3.0,
}


def repeated(items: list[int], count: int) -> int:
    """Return how many items were done more than once; fail if one is missing."""
    assert sorted(set(items)) == list(range(count)), "items are missing"
    return len(items) - count


def called(cluster: Any, word: str) -> list[Any]:
    return [json.loads(" ".join(line[1:])) for line in cluster.trace.lines(word)]


def runs(cluster: Any) -> int:
    return len(cluster.trace.lines("run"))


# -- kill -9 at chosen points

POINTS = [
    # repeated after a kill at this point: items, callbacks
    pytest.param("claimed", 0, id="after the claim"),
    pytest.param("saved", 0, id="between save and publish"),
    pytest.param("published", 0, id="between publish and ack"),
    pytest.param("finishing", 0, id="between finishing and the result"),
    pytest.param("dispatched", 1, id="between callbacks and result"),
    pytest.param("uncounted", 0, id="between the result and the chord's count"),
    pytest.param("stored", 0, id="between the result and the last write"),
]


@pytest.mark.parametrize("whom", ["child", "worker"])
@pytest.mark.parametrize(("point", "callbacks"), POINTS)
def test_a_process_is_killed_at_a_point(cluster: Any, point: str, callbacks: int, whom: str) -> None:
    conf = {**SOON, "continuation_max_runtime": 0.5 if point in ("saved", "published") else None}
    cluster.worker("-c", "1", test_point=(point, whom), **conf)
    steps = cluster.sig("steps", COUNT)
    steps.link(cluster.sig("called"))
    steps.link_error(cluster.sig("failed"))
    result = chord([steps, cluster.sig("plain", 1)], cluster.sig("total"), app=cluster.client).apply_async()
    cluster.trace.await_items(1, "point")
    if whom == "worker":
        cluster.worker("-c", "1", **conf)
    assert result.get(timeout=60) == COUNT + 1
    assert repeated(cluster.trace.items(), COUNT) == 0
    assert cluster.trace.items("page") == [0, 1, 2]
    assert cluster.trace.lines("step") == [["step", "first"], ["step", "last"]]
    assert cluster.trace.lines("failure") == cluster.trace.lines("failed") == []
    assert len(called(cluster, "total")) == 1
    await_condition(lambda: called(cluster, "called"), "the link")
    assert len(called(cluster, "called")) <= 1 + callbacks


@pytest.mark.parametrize("whom", ["child", "worker"])
def test_a_process_is_killed_between_the_chords_count_and_its_body(cluster: Any, whom: str) -> None:
    cluster.worker("-c", "1", test_point=("unpublished", whom), **SOON)
    header = [cluster.sig("plain", 1), cluster.sig("steps", COUNT)]  # which is counted last
    result = chord(header, cluster.sig("total"), app=cluster.client).apply_async()
    cluster.trace.await_items(1, "point")
    if whom == "worker":
        cluster.worker("-c", "1", **SOON)
    assert result.get(timeout=60) == COUNT + 1
    assert repeated(cluster.trace.items(), COUNT) == 0
    assert cluster.trace.lines("failure") == []
    assert len(called(cluster, "total")) == 1


@pytest.mark.parametrize("point", ["saved", "published", "finishing"])
def test_the_main_process_is_killed_at_a_point(cluster: Any, point: str) -> None:
    conf = {**SOON, "continuation_max_runtime": None if point == "finishing" else 0.5}
    cluster.worker("-c", "1", test_point=(point, "parent"), **conf)
    result = cluster.send("steps", COUNT)
    cluster.trace.await_items(1, "point")
    cluster.worker("-c", "1", **conf)
    assert result.get(timeout=60) == COUNT
    assert cluster.trace.items() == list(range(COUNT))
    assert cluster.trace.lines("step") == [["step", "first"], ["step", "last"]]
    assert cluster.trace.lines("failure") == []


def test_an_exit_before_the_result_is_stored_loses_no_result(cluster: Any) -> None:
    cluster.worker("-c", "2", test_point=("dispatched", "exit"), **SOON)
    result = cluster.send("steps", COUNT)
    assert result.get(timeout=20) == COUNT
    assert cluster.trace.items() == list(range(COUNT))
    assert cluster.trace.lines("failure") == []


# -- a worker that is frozen, and thaws


def thaw_all_at_once(cluster: Any, worker: Any, child: int) -> None:
    worker.signal_group(signal.SIGCONT)


def thaw_the_main_process_first(cluster: Any, worker: Any, child: int) -> None:
    main = worker.process.pid

    def has_renewed() -> bool:
        leases = open_store(cluster.client, "auto").scan().leases
        return any(lease.left > 0 and lease.worker.split(".")[1] == str(main) for lease in leases)

    assert not has_renewed()
    os.kill(main, signal.SIGCONT)
    await_condition(has_renewed, "its lease")
    os.kill(child, signal.SIGCONT)


@pytest.mark.parametrize("thaw", [thaw_all_at_once, thaw_the_main_process_first])
def test_a_frozen_worker_touches_nothing_when_it_thaws(cluster: Any, thaw: Any) -> None:
    first = cluster.worker("-c", "1", **{**SOON, "continuation_checkpoint_interval": 10})
    result = cluster.send("rows", COUNT, 0.1)
    cluster.trace.await_items(5)
    child = int(cluster.trace.lines("run")[0][2])
    first.signal_group(signal.SIGSTOP)
    frozen = len(cluster.trace.lines())
    cluster.worker("-c", "1", **SOON)
    cluster.trace.await_items(2, "run")
    thaw(cluster, first, child)
    await_condition(lambda: str(child) in [line[2] for line in cluster.trace.lines("over")], "its execution's end")
    late = [line for line in cluster.trace.lines()[frozen:] if line[0] == "item" and line[2] == str(child)]
    assert len(late) <= 2, f"not only the current item, and what the clock's next look leaves: {late}"
    assert result.get(timeout=60) == COUNT
    assert repeated(cluster.trace.items(), COUNT) <= 20
    assert runs(cluster) == 2


def test_an_execution_ends_whose_main_process_alone_is_frozen(cluster: Any) -> None:
    first = cluster.worker("-c", "1", **{**SOON, "continuation_checkpoint_interval": 10})
    result = cluster.send("rows", 80, 0.1)
    cluster.trace.await_items(5)
    os.kill(first.process.pid, signal.SIGSTOP)
    cluster.worker("-c", "1", **SOON)
    cluster.trace.await_items(2, "run")
    child = cluster.trace.lines("run")[0][2]
    taken_over = len(cluster.trace.lines())
    assert result.get(timeout=60) == 80
    late = [line for line in cluster.trace.lines()[taken_over:] if line[0] == "item" and line[2] == child]
    assert len(late) <= 2, f"it continued concurrently with its successor: {late}"


# -- unavailable servers

SERVERS = ["broker", "store"]


@pytest.fixture
def proxied(make_cluster: Any, redis_server: Any, make_proxy: Any) -> tuple[Any, dict[str, Proxy]]:
    """A cluster on Redis, with a proxy for the broker and one for the store."""
    proxies = {server: make_proxy(redis_server.port) for server in SERVERS}
    conf = {
        "broker_url": f"redis://127.0.0.1:{proxies['broker'].port}/0",
        "continuation_store": f"redis://127.0.0.1:{proxies['store'].port}/2",
        "result_backend": redis_url(redis_server, 1),
    }
    return make_cluster(**conf, **SOON), proxies


@pytest.mark.parametrize("server", SERVERS)
def test_connections_are_cut_while_a_task_runs(proxied: Any, server: str) -> None:
    cluster, proxies = proxied
    cluster.worker("-c", "1")
    result = cluster.send("rows", COUNT, 0.05)
    for cuts in (5, 10, 15):
        cluster.trace.await_items(cuts)
        proxies[server].cut()
    assert result.get(timeout=60) == COUNT
    assert cluster.trace.items() == list(range(COUNT))
    assert runs(cluster) == 1


@pytest.mark.parametrize("server", SERVERS)
def test_connections_are_refused_while_a_task_runs(proxied: Any, server: str) -> None:
    cluster, proxies = proxied
    cluster.worker("-c", "1")
    result = cluster.send("rows", COUNT, 0.1)
    cluster.trace.await_items(5)
    proxies[server].refuse()
    cluster.trace.await_items(35)  # for longer than the lease
    proxies[server].accept()
    assert result.get(timeout=60) == COUNT
    assert cluster.trace.items() == list(range(COUNT))
    assert runs(cluster) == 1


def test_the_store_is_refused_at_the_claim(proxied: Any) -> None:
    cluster, proxies = proxied
    worker = cluster.worker("-c", "1")
    proxies["store"].refuse()
    result = cluster.send("rows", 5)
    worker.await_log("the claim failed")
    proxies["store"].accept()
    assert result.get(timeout=60) == 5
    assert cluster.trace.items() == list(range(5))


@pytest.mark.parametrize("server", SERVERS)
def test_connections_are_refused_when_the_worker_is_stopped(proxied: Any, server: str) -> None:
    cluster, proxies = proxied
    worker = cluster.worker("-c", "1", continuation_grace_period=1)
    result = cluster.send("rows", COUNT, 0.05)
    cluster.trace.await_items(8)
    proxies[server].refuse()
    worker.kill("SIGTERM")
    worker.await_log("could not save" if server == "store" else "could not be published again")
    if server == "store":
        worker.await_exit()
    proxies[server].accept()
    worker.await_exit()
    cluster.worker("-c", "1")
    assert result.get(timeout=60) == COUNT
    assert cluster.trace.items() == list(range(COUNT))


@pytest.mark.parametrize("grace", [20, 2], ids=["within the grace", "for longer than the grace"])
@pytest.mark.parametrize("kind", ["redis", "postgresql"])
def test_the_store_is_unavailable_from_before_a_stop_until_after_the_next_claim(
    request: Any, make_cluster: Any, make_proxy: Any, redis_server: Any, kind: str, grace: float
) -> None:
    if kind == "redis":
        proxy = make_proxy(redis_server.port)
        store = f"redis://127.0.0.1:{proxy.port}/2"
    else:
        proxy = make_proxy(request.getfixturevalue("postgres_server").port)
        store = f"db+postgresql+psycopg://test@127.0.0.1:{proxy.port}/postgres"
    cluster = make_cluster(
        **redis_conf(redis_server),
        continuation_store=store,
        continuation_grace_period=grace,
        worker_prefetch_multiplier=1,
    )
    first = cluster.worker("-c", "1")
    result = cluster.send("rows", 120, 0.1)
    cluster.trace.await_items(8)
    second = cluster.worker("-c", "1")
    proxy.refuse()
    cluster.trace.await_items(len(cluster.trace.items()) + 30)  # 3 s
    first.kill("SIGTERM")
    stopped = time.monotonic()
    first.await_log("waiting for the store")
    if grace < 10:
        first.await_exit()
        second.await_log("the claim failed")
    await_condition(lambda: time.monotonic() - stopped > 10, "the store")
    if grace < 10:  # the next attempt comes 5 s later, and a sweep before that
        second.await_log("the claim failed", times=second.text.count("the claim failed") + 1)
    proxy.accept()
    first.await_exit()
    assert result.get(timeout=90) == 120
    assert cluster.trace.items() == list(range(120))
    assert cluster.trace.lines("failure") == []


@pytest.mark.parametrize("server", SERVERS)
def test_connections_are_refused_at_the_end(proxied: Any, server: str) -> None:
    cluster, proxies = proxied
    worker = cluster.worker("-c", "1")
    result = cluster.send("rows", COUNT, 0.05)
    cluster.trace.await_items(8)
    proxies[server].refuse()
    assert result.get(timeout=60) == COUNT  # the result backend is there
    proxies[server].accept()
    assert cluster.send("rows", 1).get(timeout=60) == 1
    assert cluster.trace.items() == [*range(COUNT), 0]
    assert runs(cluster) == 2
    assert worker.process.poll() is None


def test_a_store_that_stalls_holds_the_task_for_seconds_only(proxied: Any) -> None:
    cluster, proxies = proxied
    cluster.worker("-c", "1")
    result = cluster.send("rows", COUNT, 0.05)
    cluster.trace.await_items(8)
    proxies["store"].stall()
    began = time.monotonic()
    cluster.trace.await_items(10)
    held = time.monotonic() - began
    proxies["store"].flow()
    assert result.get(timeout=60) == COUNT
    assert cluster.trace.items() == list(range(COUNT))
    assert held < 15, f"a save held the task for {held:.1f} s"


def test_a_store_that_is_emptied_under_a_running_task(proxied: Any, redis_server: Any) -> None:
    cluster, _ = proxied
    cluster.worker("-c", "1")
    result = cluster.send("rows", COUNT, 0.05)
    cluster.trace.await_items(8)
    with Redis(port=redis_server.port, db=2) as client:
        client.flushdb()
    assert result.get(timeout=60) == COUNT
    repeated(cluster.trace.items(), COUNT)


def test_a_store_that_is_emptied_while_the_task_is_queued(proxied: Any, redis_server: Any) -> None:
    cluster, _ = proxied
    first = cluster.worker("-c", "1")
    result = cluster.send("rows", COUNT, 0.05)
    cluster.trace.await_items(8)
    first.kill("SIGTERM")
    first.await_exit()
    with Redis(port=redis_server.port, db=2) as client:
        client.flushdb()
    cluster.worker("-c", "1")
    assert result.get(timeout=60) == COUNT
    assert cluster.trace.items() == list(range(COUNT))


def test_postgres_is_killed_and_restarted_under_a_running_task(
    make_cluster: Any, redis_server: Any, postgres_server: LocalProcess
) -> None:
    store = f"db+postgresql+psycopg://test@127.0.0.1:{postgres_server.port}/postgres"
    on_database = make_cluster(**redis_conf(redis_server), **{**SOON, "continuation_checkpoint_interval": 0.2})
    first = on_database.worker("-c", "1", continuation_store=store)
    result = on_database.send("rows", 80, 0.1)
    on_database.trace.await_items(10)
    starts = postgres_server.text.count(POSTGRES_IS_READY)
    postgres_server.kill()
    on_database.trace.await_items(20)
    first.await_log("could not save")

    def restarted() -> bool:
        if postgres_server.process.poll() is not None:  # its last processes may still be running
            postgres_server.start()
        return postgres_server.text.count(POSTGRES_IS_READY) > starts

    await_condition(restarted, "PostgreSQL")
    on_database.trace.await_items(50)
    first.kill()
    on_database.worker("-c", "1", continuation_store=store)
    assert result.get(timeout=60) == 80
    assert repeated(on_database.trace.items(), 80) <= 4  # those since the last save, and the current one
    assert runs(on_database) == 2


POSTGRES_IS_READY = "database system is ready to accept connections"


# -- brokers that deliver again


def test_a_visibility_timeout_shorter_than_the_task(on_redis: Any) -> None:
    timeout = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    conf = {**SOON, "broker_transport_options": timeout}
    workers = [on_redis.worker("-c", "1", **conf) for _ in range(2)]
    result = on_redis.send("rows", 100, 0.1)
    assert result.get(timeout=60) == 100
    assert on_redis.trace.items() == list(range(100))
    assert runs(on_redis) == 1
    assert any("this message is stale" in worker.text for worker in workers), "it was never delivered again"


@pytest.mark.parametrize("slices", [1.0, None])
def test_a_consumer_timeout_shorter_than_the_task(
    on_rabbitmq: Any, short_consumer_timeout: None, slices: float | None
) -> None:
    worker = on_rabbitmq.worker("-c", "1", **SOON, continuation_max_runtime=slices)
    result = on_rabbitmq.send("rows", 80, 0.1)
    if slices is None:  # the case for time slices: RabbitMQ takes the message back, and Celery stops the worker
        worker.await_exit()
        assert "timed out" in worker.text
        on_rabbitmq.worker("-c", "1", **SOON, continuation_max_runtime=1.0)
    assert result.get(timeout=60) == 80
    assert on_rabbitmq.trace.items() == list(range(80))
    assert slices is None or worker.process.poll() is None


def test_results_that_expire_while_the_task_lives(cluster: Any) -> None:
    conf = {**SOON, "result_expires": 1}
    first = cluster.worker("-c", "1", **conf)
    result = cluster.send("rows", 80, 0.05)
    cluster.trace.await_items(10)
    first.kill("SIGTERM")
    first.await_exit()
    await_condition(lambda: result.state == "PENDING", "the end of the stored state")
    second = cluster.worker("-c", "1", **conf)
    cluster.trace.await_items(30)
    second.kill()
    cluster.worker("-c", "1", **conf)
    assert result.get(timeout=60) == 80
    assert repeated(cluster.trace.items(), 80) <= 1


# -- a task that kills its process


@pytest.fixture
def memory_group() -> Iterator[str | None]:
    """A memory limit, as the file that a process joins it by; None where none can be made."""
    folder = Path("/sys/fs/cgroup/memory") / f"celery-continuations-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text("150M")
    except OSError:
        yield None
        return
    yield str(folder / "cgroup.procs")
    folder.rmdir()


@pytest.mark.parametrize("at", [4, None], ids=["at an item", "before its first step"])
def test_a_crash_loop_ends(cluster: Any, memory_group: str | None, at: int | None) -> None:
    cluster.worker("-c", "2", **SOON, test_memory_group=memory_group)
    result = cluster.client.send_task(
        "project.dying", (10, at), link=[cluster.sig("called")], link_error=[cluster.sig("failed")]
    )
    with pytest.raises(Exception, match="5") as caught:
        result.get(timeout=60)
    assert type(caught.value).__name__ == "CrashLoopError"
    assert runs(cluster) == 5
    assert cluster.trace.items() == list(range(at or 0))
    await_condition(lambda: cluster.trace.lines("failed"), "the errback")
    stays_as_it_is(cluster, result, "failed")
    assert cluster.trace.lines("failed") == [["failed", result.id, "CrashLoopError"]]
    assert cluster.trace.lines("called") == []
    assert len(cluster.trace.lines("failure")) == 1


def test_a_worker_killed_while_stopping_does_not_count_as_a_crash(cluster: Any) -> None:
    conf = {**SOON, "continuation_max_crashes": 1}
    first = cluster.worker("-c", "1", **conf)
    result = cluster.send("rows", 3, 3.0)
    cluster.trace.await_items(1, "run")
    first.kill("SIGTERM")
    store = open_store(cluster.client, "auto")
    await_condition(lambda: [lease.note for lease in store.scan().leases] == ["stopping"], "the note")
    first.kill()
    cluster.worker("-c", "1", **conf)
    assert result.get(timeout=60) == 3
    assert cluster.trace.items() == [0, 1, 2]


def test_a_worker_killed_with_two_tasks_counts_as_a_crash_of_neither(cluster: Any) -> None:
    conf = {**SOON, "continuation_max_crashes": 1}
    first = cluster.worker("-c", "2", **conf)
    results = [cluster.send("rows", COUNT, 0.05) for _ in range(2)]
    cluster.trace.await_items(30)
    first.kill()
    cluster.worker("-c", "2", **conf)
    assert [result.get(timeout=60) for result in results] == [COUNT, COUNT]
    assert len(cluster.trace.items()) <= 2 * COUNT + 2


# -- tasks that have ended, or wait, and must not be recovered


def stays_as_it_is(cluster: Any, result: Any, status: str) -> None:
    """Let sweeps go by while another task works: the record stays, and nothing runs."""
    store = open_store(cluster.client, "auto")
    await_condition(lambda: store.read(result.id).fence.status == status, f"the status {status}")
    state, before = result.state, [line for line in cluster.trace.lines("run") if line[1] == result.id]
    assert cluster.send("quick", 1).get(timeout=30) == 1
    assert cluster.send("rows", 100, 0.05).get(timeout=60) == 100
    assert [line for line in cluster.trace.lines("run") if line[1] == result.id] == before
    assert store.read(result.id).fence.status == status
    assert result.state == state


OFTEN = {**SOON, "continuation_sweep_interval": 0.5}


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_a_task_is_revoked_while_it_runs(cluster: Any, number: str) -> None:
    cluster.worker("-c", "2", **OFTEN)
    result = cluster.send("rows", 200, 0.05)
    cluster.trace.await_items(8)
    cluster.client.control.revoke(result.id, terminate=True, signal=number)
    await_condition(lambda: result.state == "REVOKED", "the state REVOKED")
    stays_as_it_is(cluster, result, "cancelled")


def test_a_revoke_ends_a_running_task_at_its_next_checkpoint_whichever_worker_runs_it(cluster: Any) -> None:
    """Each of two workers receives the command; one runs the task, and both are replaced afterwards."""
    first = [cluster.worker("-c", "1", **OFTEN) for _ in range(2)]
    result = cluster.send("rows", 200, 0.05)
    cluster.trace.await_items(8)
    cluster.client.control.revoke(result.id)
    await_condition(lambda: result.state == "REVOKED", "the state REVOKED")
    await_condition(lambda: result.status_of_record == "cancelled", "the record's end")
    for worker in first:
        worker.kill("SIGTERM")
        worker.await_exit()
    cluster.worker("-c", "1", **OFTEN)
    stays_as_it_is(cluster, result, "cancelled")


def test_a_task_is_revoked_while_it_waits_in_its_queue(cluster: Any) -> None:
    options = {"continuation_max_runtime": 0.5, "continuation_resume_options": {"countdown": 3}}
    cluster.worker("-c", "2", **OFTEN, **options)
    result = cluster.send("rows", COUNT, 0.05)
    await_condition(lambda: result.state == "RETRY", "the interruption")
    cluster.client.control.revoke(result.id)
    await_condition(lambda: result.state == "REVOKED", "the state REVOKED")
    cluster.conf.update(options)
    stays_as_it_is(cluster, result, "cancelled")
    assert runs(cluster) >= 2


@pytest.mark.parametrize(
    ("limit", "error"), [("time_limit", "TimeLimitExceeded"), ("soft_time_limit", "SoftTimeLimitExceeded")]
)
def test_a_time_limit_ends_a_task(cluster: Any, limit: str, error: str) -> None:
    cluster.worker("-c", "2", **OFTEN)
    result = cluster.send("rows", 200, 0.05, link_error=[cluster.sig("failed")], **{limit: 1})
    await_condition(lambda: result.state == "FAILURE", "the state FAILURE")
    stays_as_it_is(cluster, result, "failed")
    # once, or twice, which is Celery's own way with a hard limit
    assert {line[1] for line in cluster.trace.lines("failed")} == {result.id}
    assert type(result.result).__name__ == error


def test_a_retry_in_an_hour_waits_for_its_hour(cluster: Any) -> None:
    cluster.worker("-c", "2", **OFTEN)
    result = cluster.send("later", 3600)
    await_condition(lambda: result.state == "RETRY", "the state RETRY")
    stays_as_it_is(cluster, result, "queued")


def test_a_result_backend_that_is_away_at_the_end(make_cluster: Any, redis_server: Any, make_proxy: Any) -> None:
    results = make_proxy(redis_server.port)
    conf = {
        **SOON,
        "broker_url": redis_url(redis_server, 0),
        "result_backend": f"redis://127.0.0.1:{results.port}/1",
        "continuation_store": redis_url(redis_server, 2),
        "result_backend_transport_options": {"retry_policy": {"max_retries": 2}},
    }
    cluster = make_cluster(**conf)
    cluster.worker("-c", "1")
    result = cluster.send("rows", COUNT, 0.05)
    cluster.trace.await_items(8)
    results.refuse()
    await_condition(lambda: cluster.trace.lines("over"), "the end of the execution")
    results.accept()
    # Celery stores the error that prevented storing the result; the record follows.
    await_condition(lambda: result.state == "FAILURE", "the result")
    store = open_store(cluster.client, conf["continuation_store"])
    await_condition(lambda: store.read(result.id).fence.status == "failed", "the record's end")
    store.close()
    assert runs(cluster) == 1


def test_a_cold_stop_does_not_count_as_a_loss_in_the_sweep(cluster: Any) -> None:
    """Celery forgets the requests that it cancels, while their tasks still go on to their checkpoint."""
    conf = {**SOON, "continuation_checkpoint_interval": 10, "continuation_sweep_interval": 0.1}
    first = cluster.worker("-c", "1", **conf)
    result = cluster.send("rows", 12, 0.7)
    cluster.trace.await_items(3)
    first.kill("SIGQUIT")
    first.await_exit()
    assert "its execution was lost" not in first.text
    cluster.worker("-c", "1", **conf)
    assert result.get(timeout=60) == 12
    assert cluster.trace.items() == list(range(12))
