"""Pools that change while a task runs, and workers side by side."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.processes import await_condition

COUNT = 60


def finish_elsewhere(cluster: Any, worker: Any, result: Any) -> None:
    worker.kill("SIGTERM")
    worker.await_exit()
    assert result.state == "RETRY"
    cluster.worker()
    assert result.get(timeout=30) == COUNT
    assert cluster.trace.items() == list(range(COUNT))


def test_max_tasks_per_child(on_redis: Any) -> None:
    """Replaced children notice the stop too."""
    worker = on_redis.worker("-c", "1", "--max-tasks-per-child", "1")
    assert [on_redis.send("quick", n).get(timeout=20) for n in range(3)] == [0, 1, 2]
    result = on_redis.send("rows", COUNT)
    on_redis.trace.await_items(8)
    finish_elsewhere(on_redis, worker, result)


def test_autoscale(on_redis: Any) -> None:
    worker = on_redis.worker("--autoscale", "3,1", worker_prefetch_multiplier=4)
    others = [on_redis.send("plain", n) for n in range(6)]
    result = on_redis.send("rows", COUNT)
    on_redis.trace.await_items(8)
    assert [other.get(timeout=20) for other in others] == list(range(6))
    finish_elsewhere(on_redis, worker, result)


def test_pool_restart(on_redis: Any) -> None:
    """It waits for the running task, which is not interrupted; later tasks notice a stop as usual."""
    worker = on_redis.worker("-c", "1", worker_pool_restarts=True)
    before = on_redis.send("rows", 20)
    on_redis.trace.await_items(3)
    on_redis.client.control.pool_restart()
    assert before.get(timeout=20) == 20
    assert on_redis.trace.items() == list(range(20))
    on_redis.trace.path.write_text("")
    result = on_redis.send("rows", COUNT)
    on_redis.trace.await_items(8)
    finish_elsewhere(on_redis, worker, result)


def test_solo_control_shutdown_comes_after_the_task(on_redis: Any) -> None:
    """The solo pool reads no control messages while a task runs: this is Celery's limit."""
    worker = on_redis.worker("-P", "solo")
    result = on_redis.send("rows", 30)
    on_redis.trace.await_items(5)
    on_redis.client.control.shutdown()
    worker.await_exit()
    assert result.get(timeout=5) == 30


def test_revoke_with_terminate_is_not_an_interruption(on_redis: Any) -> None:
    on_redis.worker("-c", "1")
    result = on_redis.send("rows", 200)
    on_redis.trace.await_items(5)
    result.revoke(terminate=True)
    await_condition(lambda: result.state == "REVOKED", "REVOKED")
    assert on_redis.send("plain", 1).get(timeout=20) == 1
    assert len(on_redis.trace.lines("run")) == 1


def test_a_task_is_revoked_between_two_executions(cluster: Any) -> None:
    first = cluster.worker()
    result = cluster.send("rows", COUNT)
    cluster.trace.await_items(5)
    first.kill("SIGTERM")
    first.await_exit()
    done = len(cluster.trace.items())
    blocker = cluster.worker("-c", "1", "-Q", "another")
    result.revoke()
    blocker.await_log(f"Task {result.id} cancelled")
    cluster.client.control.add_consumer(cluster.conf["task_default_queue"])
    await_condition(lambda: result.state == "REVOKED", "REVOKED")
    assert len(cluster.trace.items()) == done


@pytest.mark.parametrize("pool", [("-P", "threads", "-c", "4"), ("-P", "gevent", "-c", "4"), ("-c", "4")])
def test_several_tasks_at_once_each_with_a_run_of_its_own(on_redis: Any, pool: tuple[str, ...]) -> None:
    first = on_redis.worker(*pool)
    results = [on_redis.send("rows", 40) for _ in range(4)]
    await_condition(lambda: len(on_redis.trace.lines("run")) == 4, "four tasks at once")
    on_redis.trace.await_items(20)
    first.kill("SIGTERM")
    first.await_exit()
    assert {result.state for result in results} == {"RETRY"}
    on_redis.worker(*pool)
    assert [result.get(timeout=30) for result in results] == [40] * 4
    assert sorted(on_redis.trace.items()) == sorted(list(range(40)) * 4)


def test_a_worker_with_a_full_queue_leaves_its_continuation_to_others(cluster: Any) -> None:
    """A worker that stops with prefetched work returns it, and the next worker runs it."""
    first = cluster.worker("-c", "1", worker_prefetch_multiplier=4)
    results = [cluster.send("rows", 30) for _ in range(3)]
    cluster.trace.await_items(5)
    first.kill("SIGTERM")
    first.await_exit()
    assert len(cluster.trace.items()) < 90
    cluster.worker("-c", "2")
    assert [result.get(timeout=60) for result in results] == [30] * 3
    assert sorted(cluster.trace.items()) == sorted(list(range(30)) * 3)
