"""The interruption of a task does not affect the canvas around it."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult

from tests.support.processes import await_condition


def called(cluster: Any, word: str) -> list[Any]:
    return [json.loads(" ".join(line[1:])) for line in cluster.trace.lines(word)]


def test_chord_of_interrupted_headers_and_an_interrupted_body(any_cluster: Any) -> None:
    any_cluster.worker("-c", "2")
    header = [any_cluster.sig("stuttering", n) for n in (1, 2, 3)]
    result = chord(header, any_cluster.sig("total"), app=any_cluster.client).apply_async()
    assert result.get(timeout=60) == 6
    assert sorted(called(any_cluster, "total")[0]) == [1, 2, 3]
    assert len(called(any_cluster, "total")) == 1
    assert len(any_cluster.trace.items()) == 9


def test_chain_group_link_and_an_interrupted_chord_body(cluster: Any) -> None:
    cluster.worker("-c", "2")
    sig = cluster.sig
    chained = chain(sig("stuttering", 5), sig("called"), sig("stuttering"), app=cluster.client).apply_async()
    assert chained.get(timeout=60) == 5
    assert called(cluster, "called") == [[5]]
    grouped = group([sig("stuttering", n) for n in (7, 8)], app=cluster.client).apply_async()
    assert grouped.get(timeout=60) == [7, 8]
    linked = cluster.client.send_task("project.stuttering", (9,), link=[sig("called")])
    assert linked.get(timeout=60) == 9
    await_condition(lambda: len(called(cluster, "called")) >= 2, "the link")
    assert called(cluster, "called") == [[5], [9]]
    body = chord([sig("plain", 1), sig("plain", 2)], sig("stuttering"), app=cluster.client).apply_async()
    assert body.get(timeout=60) == [1, 2]


def test_errback_fires_once_at_the_end(cluster: Any) -> None:
    cluster.worker("-c", "2")
    result = cluster.client.send_task(
        "project.stuttering", (1,), {"fail": True}, link=[cluster.sig("called")], link_error=[cluster.sig("failed")]
    )
    with pytest.raises(Exception, match="failed in the end"):
        result.get(timeout=60)
    await_condition(lambda: cluster.trace.lines("failed"), "the errback")
    assert cluster.trace.lines("failed") == [["failed", result.id, "ContinuationError"]]
    assert cluster.trace.lines("called") == []
    assert cluster.trace.items() == [0, 1, 2]


def test_get_waits_and_ready_is_false_between_two_workers(cluster: Any) -> None:
    first = cluster.worker()
    result = cluster.send("rows", 40)
    cluster.trace.await_items(5)
    first.kill("SIGTERM")
    first.await_exit()
    assert (result.state, result.ready()) == ("RETRY", False)
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=0.3)
    cluster.worker()
    assert result.get(timeout=30) == 40
    assert result.ready()


def test_retries_stay_and_the_same_id_is_one_row(cluster: Any) -> None:
    cluster.worker()
    result = cluster.send("stuttering", 1)
    assert result.get(timeout=30) == 1
    assert cluster.trace.items("retries") == [0]
    assert result.resumptions == 3


def test_rpc_reply_queues(make_cluster: Any, rabbitmq_server: Any) -> None:
    from celery_continuations import ContinuableAsyncResult

    cluster = make_cluster(broker_url=rabbitmq_server.url, result_backend="rpc://")
    worker = cluster.worker()
    worker.await_log("travels in their messages only")
    result = cluster.client.send_task("project.stuttering", (3,))
    assert not isinstance(result, ContinuableAsyncResult)
    assert isinstance(result, AsyncResult)
    assert result.get(timeout=30) == 3
    assert cluster.trace.items() == [0, 1, 2]


def test_monitors_see_one_task_that_is_retried(cluster: Any) -> None:
    """The state from which Flower and other readers of Celery's events build their rows."""
    seen: list[dict[str, Any]] = []

    def receive() -> None:
        with cluster.client.connection_for_read() as connection:
            receiver = cluster.client.events.Receiver(connection, handlers={"*": seen.append})
            receivers.append(receiver)
            with suppress(socket.timeout):
                receiver.capture(limit=None, timeout=30, wakeup=True)

    receivers: list[Any] = []
    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    cluster.worker("-c", "1", "-E")
    await_condition(lambda: seen, "a first event, such as a heartbeat")
    result = cluster.send("stuttering", 1)
    assert result.get(timeout=30) == 1
    await_condition(lambda: "task-succeeded" in [event["type"] for event in seen], "the last event")
    receivers[0].should_stop = True
    thread.join(10)
    types = [event["type"] for event in seen if event["type"].startswith("task-")]
    assert types.count("task-retried") == 3
    assert types.count("task-succeeded") == 1
    assert {event["uuid"] for event in seen if "uuid" in event} == {result.id}
    retried = next(event for event in seen if event["type"] == "task-retried")
    assert retried["exception"] == "Interrupted('rows', 1, 'again', percent=33)"
