"""Every way of stopping a worker, on every pool: the task is interrupted, and another worker finishes it."""

from __future__ import annotations

import signal
from typing import Any

import pytest

SOFT = {"worker_soft_shutdown_timeout": 2}


def sigterm(worker: Any, cluster: Any) -> None:
    worker.kill("SIGTERM")


def sigint(worker: Any, cluster: Any) -> None:
    worker.kill("SIGINT")


def sigint_twice(worker: Any, cluster: Any) -> None:
    worker.kill("SIGINT")
    worker.await_log("Hitting Ctrl+C again")
    worker.kill("SIGINT")


def sigquit(worker: Any, cluster: Any) -> None:
    worker.kill("SIGQUIT")


def sigterm_to_the_group(worker: Any, cluster: Any) -> None:
    worker.signal_group(signal.SIGTERM)


def sigquit_to_the_group(worker: Any, cluster: Any) -> None:
    worker.signal_group(signal.SIGQUIT)


def control_shutdown(worker: Any, cluster: Any) -> None:
    cluster.client.control.shutdown()


def sighup(worker: Any, cluster: Any) -> None:
    worker.kill("SIGHUP")


STOPS = [
    pytest.param(sigterm, {}, id="SIGTERM"),
    pytest.param(sigint, {}, id="SIGINT"),
    pytest.param(sigint_twice, {}, id="SIGINT twice"),
    pytest.param(sigquit, {}, id="SIGQUIT"),
    pytest.param(sigquit, SOFT, id="SIGQUIT soft"),
    pytest.param(sigterm, {"REMAP": True, **SOFT}, id="REMAP_SIGTERM soft"),
    pytest.param(sigterm_to_the_group, {}, id="SIGTERM to the group"),
    pytest.param(sigquit_to_the_group, {}, id="SIGQUIT to the group"),
    pytest.param(control_shutdown, {}, id="control.shutdown"),
]

COUNT = 60


def interrupt_and_resume(cluster: Any, stop: Any, conf: dict[str, Any], *options: str) -> None:
    conf = dict(conf)
    env = {"REMAP_SIGTERM": "SIGQUIT"} if conf.pop("REMAP", False) else {}
    first = cluster.worker(*options, env=env, **conf)
    result = cluster.send("rows", COUNT)
    cluster.trace.await_items(8)
    stop(first, cluster)
    first.await_exit()
    done = cluster.trace.items()
    assert len(done) < COUNT, "the task was not interrupted"
    assert result.state == "RETRY"
    assert str(result.info) == f"Interrupted at rows:{len(done)}, {100 * len(done) // COUNT} % (stopping)"
    cluster.worker(*options, **conf)
    assert result.get(timeout=30) == COUNT
    assert cluster.trace.items() == list(range(COUNT))


@pytest.mark.parametrize(("stop", "conf"), STOPS)
def test_a_stop_with_prefork(cluster: Any, stop: Any, conf: dict[str, Any]) -> None:
    interrupt_and_resume(cluster, stop, conf, "-c", "1")


def test_sighup_restarts_the_worker_and_the_task_resumes_in_it(cluster: Any) -> None:
    worker = cluster.worker("-c", "2")
    result = cluster.send("rows", COUNT)
    cluster.trace.await_items(8)
    worker.kill("SIGHUP")
    assert result.get(timeout=30) == COUNT
    assert cluster.trace.items() == list(range(COUNT))
    assert len(cluster.trace.lines("run")) == 2
    worker.await_log(" ready.", times=2)


@pytest.mark.parametrize(("stop", "conf"), STOPS)
def test_a_stop_with_prefork_that_spawns(on_redis: Any, stop: Any, conf: dict[str, Any]) -> None:
    interrupt_and_resume(on_redis, stop, {**conf, "worker_pool_start_method": "spawn"}, "-c", "1")


@pytest.mark.parametrize(("stop", "conf"), STOPS)
@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_a_stop_with_other_pools(on_redis: Any, pool: str, stop: Any, conf: dict[str, Any]) -> None:
    if (pool, stop) == ("solo", control_shutdown):
        pytest.skip("the solo pool reads no control message while a task runs: test_pools.py has what happens")
    interrupt_and_resume(on_redis, stop, conf, "-P", pool, "-c", "1")


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
@pytest.mark.parametrize("then", ["SIGQUIT", "SIGTERM to the group"])
def test_a_second_signal_while_the_message_goes_out(on_redis: Any, pool: str, then: str) -> None:
    first = on_redis.worker("-P", pool, "-c", "1", test_slow_publish=1.0)
    result = on_redis.send("rows", COUNT)
    on_redis.trace.await_items(8)
    first.kill("SIGTERM")
    on_redis.trace.await_items(1, "publishing")
    if then == "SIGQUIT":
        first.kill("SIGQUIT")
    else:
        first.signal_group(signal.SIGTERM)
    first.await_exit()
    on_redis.worker("-c", "1")
    assert result.get(timeout=30) == COUNT
    assert on_redis.trace.items() == list(range(COUNT))


def test_a_cold_stop_does_not_wait_for_a_long_item(on_redis: Any) -> None:
    """The current item gets a second before it is cut off; another worker repeats it."""
    first = on_redis.worker("-c", "1")
    result = on_redis.send("rows", 1, 6.0)
    on_redis.trace.await_items(1, "run")
    first.kill("SIGQUIT")
    first.await_exit(within=5)
    assert on_redis.trace.items() == []
    assert str(result.info) == "Interrupted at rows, 0 % (stopping)"
    on_redis.worker("-c", "1")
    assert result.get(timeout=30) == 1
    assert on_redis.trace.items() == [0]


def test_a_stop_before_a_task_is_accepted(cluster: Any) -> None:
    """Celery gives up a job whose acceptance it has not read; the process that runs it must not wait for that."""
    first = cluster.worker("-c", "2", test_late_accept=0.5)
    results = [cluster.send("rows", 3), cluster.send("rows", 3)]
    cluster.trace.await_items(2, "accepting")
    first.kill("SIGTERM")  # the acceptance of the first wakes the worker up
    first.await_exit(within=10)
    cluster.worker("-c", "1")
    assert [result.get(timeout=30) for result in results] == [3, 3]
    assert sorted(cluster.trace.items()) == [0, 0, 1, 1, 2, 2]
