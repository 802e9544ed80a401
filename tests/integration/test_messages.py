"""The resumed message is the same, with the next generation."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import uuid

from celery_continuations.exceptions import SnapshotTooLargeError
from tests.support.processes import await_condition

# Fields of a single delivery, not of the task.
OF_THE_DELIVERY = {
    "continuation", "continuation_generation", "continuation_delivery", "continuation_execution",
    "eta", "expires", "delivery_info", "properties", "headers", "children", "hostname",
}  # fmt: skip


def requests(cluster: Any) -> list[dict[str, Any]]:
    return [json.loads(" ".join(line[1:])) for line in cluster.trace.lines("request")]


def test_everything_in_a_message_is_kept(cluster: Any) -> None:
    cluster.worker(
        "-c", "1", "-Q", f"{cluster.conf['task_default_queue']},topic.q,topic.priorities",
        test_topic="topic", accept_content=["json", "pickle"], task_send_sent_event=True, env={"C_FORCE_ROOT": "1"},
    )  # fmt: skip
    result = cluster.client.send_task(
        "project.witness",
        (1, "two"),
        {"three": [3]},
        serializer="pickle",
        compression="zlib",
        delivery_mode=1,
        priority=3,
        headers={"tenant": "acme"},
        stamped_headers=["stamp"],
        stamp="of mine",
        shadow="another name",
        expires=datetime.now(timezone.utc) + timedelta(hours=1),
        time_limit=100,
        soft_time_limit=90,
        ignore_result=False,
        reply_to="somewhere",
        correlation_id="my correlation",
        argsrepr="(secret)",
        kwargsrepr="{secret}",
        root_id="the root",
        parent_id="the parent",
        group_id="the group",
        group_index=4,
        replaced_task_nesting=1,
        link=[cluster.sig("called")],
        link_error=[cluster.sig("failed")],
    )
    assert result.get(timeout=30) == "seen"
    first, second = requests(cluster)
    assert {key for key in set(first) | set(second) if first.get(key) != second.get(key)} <= OF_THE_DELIVERY
    assert second["continuation_generation"] == 1
    assert second["expires"] is None, "a started task has met its expiry"
    assert second["continuation_delivery"]["content_type"] == first["continuation_delivery"]["content_type"]
    assert "python-serialize" in second["continuation_delivery"]["content_type"]
    assert second["headers"]["tenant"] == "acme"
    for request in (first, second):
        assert request["delivery_info"]["priority"] == 3
        assert int(request["properties"]["delivery_mode"]) == 1
        assert request["correlation_id"] == "my correlation"
        assert request["reply_to"] == "somewhere"
        assert request["stamps"] == {"stamp": "of mine"}
    assert not second.get("children")
    await_condition(lambda: cluster.trace.lines("called"), "the link")
    assert len(cluster.trace.lines("called")) == 1


def test_no_parent_stays_no_parent(cluster: Any) -> None:
    cluster.worker()
    result = cluster.send("witness")
    result.get(timeout=30)
    first, second = requests(cluster)
    assert first["parent_id"] is second["parent_id"] is None
    assert first["root_id"] == second["root_id"] == result.id
    assert result.children in (None, [])


@pytest.mark.parametrize(
    "route",
    [
        {"exchange": "topic", "routing_key": "rows.of.acme"},
        {"queue": "topic.q"},
        {"queue": "topic.priorities", "priority": 7},
        {"exchange": "", "routing_key": "topic.priorities"},
    ],
    ids=["topic exchange", "topic queue", "priorities", "anonymous exchange"],
)
def test_routes_are_kept(cluster: Any, route: dict[str, Any]) -> None:
    from kombu import Exchange, Queue

    topic = f"topic{cluster.conf['task_default_queue']}"
    route = {key: value.replace("topic", topic) if isinstance(value, str) else value for key, value in route.items()}
    queues = [
        Queue(f"{topic}.q", Exchange(topic, type="topic"), routing_key="rows.#"),
        Queue(f"{topic}.priorities", max_priority=9),
    ]
    cluster.client.conf.task_queues = queues
    cluster.worker("-c", "1", "-Q", f"{topic}.q,{topic}.priorities", test_topic=topic)
    if route.get("exchange") == "":
        with cluster.client.producer_pool.acquire() as producer:
            message = cluster.client.amqp.create_task_message(uuid(), "project.witness", (), {})
            producer.publish(
                message.body, headers=message.headers, serializer="json", exchange="", **message.properties,
                routing_key=route["routing_key"], declare=queues,
            )  # fmt: skip
    else:
        # declared, or a client on Redis would not know the exchange's type either
        cluster.client.send_task("project.witness", declare=queues, **route)
    await_condition(lambda: len(requests(cluster)) == 2, "two executions")
    first, second = requests(cluster)
    for key in ("exchange", "routing_key", "priority"):
        assert first["delivery_info"][key] == second["delivery_info"][key]


def test_expires_that_passes_while_the_task_runs(cluster: Any) -> None:
    worker = cluster.worker()
    expires = datetime.now(timezone.utc) + timedelta(seconds=1.5)
    result = cluster.send("rows", 40, expires=expires)
    cluster.trace.await_items(5)
    worker.kill("SIGTERM")
    worker.await_exit()
    await_condition(lambda: datetime.now(timezone.utc) > expires, "the expiry")
    cluster.worker()
    assert result.get(timeout=30) == 40
    assert cluster.trace.items() == list(range(40))


def test_a_snapshot_of_200_kb_survives_and_one_over_the_limit_is_refused(any_cluster: Any) -> None:
    any_cluster.worker()
    assert any_cluster.send("big", 200_000).get(timeout=30) == 200_000
    with pytest.raises(SnapshotTooLargeError, match=r"largest part is saved\['ballast'\]"):
        any_cluster.send("big", 300_000).get(timeout=30)


@pytest.mark.parametrize("name", ["early", "late_claim"])
def test_tasks_acknowledged_early_and_tasks_of_an_apps_own_class(cluster: Any, name: str) -> None:
    first = cluster.worker()
    result = cluster.send(name, 40)
    cluster.trace.await_items(5)
    first.kill("SIGTERM")
    first.await_exit()
    assert result.state == "RETRY"
    cluster.worker()
    assert result.get(timeout=30) == 40
    assert cluster.trace.items() == list(range(40))
