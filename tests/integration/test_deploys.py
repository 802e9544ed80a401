"""Code and data that change while tasks are running, on real workers."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from celery_continuations import ContinuableAsyncResult
from celery_continuations.exceptions import SourceChangedError
from tests.support.processes import await_condition
from tests.support.shell import Shell

COUNT = 40
OLD, NEW = {"TEST_CODE": "old"}, {"TEST_CODE": "new"}


def done(cluster: Any) -> Counter[str]:
    return Counter(row[1] for row in cluster.trace.lines("item"))


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_rolling_deploy_with_both_versions_at_once(request: Any, broker: str) -> None:
    """Workers of both versions receive tasks of both versions; each item is done once."""
    cluster = request.getfixturevalue(f"on_{broker}")
    old = [cluster.worker("-c", "2", env=OLD) for _ in range(2)]
    first = [cluster.send("deployed", COUNT) for _ in range(4)]
    cluster.trace.await_items(20)
    new = cluster.worker("-c", "2", env=NEW)
    old[0].kill("SIGTERM")
    old[0].await_exit(within=60)
    second = [cluster.send("deployed", COUNT) for _ in range(4)]
    cluster.trace.await_items(60)
    new.kill("SIGTERM")  # what newer code has begun now comes to the old worker alone
    new.await_exit(within=60)
    newer = cluster.worker("-c", "2", env=NEW)
    cluster.trace.await_items(120)
    old[1].kill("SIGTERM")
    old[1].await_exit(within=60)
    ended = [result.get(timeout=90, propagate=False) for result in (*first, *second)]
    assert set(ended) <= {"old", "new"}
    items = done(cluster)
    assert set(items.values()) == {1}
    for result in (*first, *second):
        assert sum(count for item, count in items.items() if item.startswith(result.id)) == COUNT
    audited = {row[1] for row in cluster.trace.lines("audit")}
    assert not audited & {result.id for result in first}, "the old order for what old code has begun"
    newer.kill("SIGTERM")


def test_a_task_that_newer_code_has_begun_waits_for_newer_code(on_redis: Any) -> None:
    """The commands list and show, and the log, name both versions."""
    new = on_redis.worker("-c", "1", env=NEW)
    result = on_redis.send("deployed", COUNT)
    on_redis.trace.await_items(5)
    new.kill("SIGTERM")
    new.await_exit(within=60)
    old = on_redis.worker("-c", "1", env=OLD)
    old.await_log(
        "cannot resume its snapshot: the task was begun by version 2 of its code, and this worker has version 1"
    )
    shell = Shell(on_redis)
    await_condition(lambda: "needs other code" in shell.piped("list"), "the list says what it waits for")
    assert "begun by version 2" in shell.piped("show", result.id)
    (found,) = json.loads(shell.piped("list", "--version", "2", "--json"))
    assert (found["id"], found["version"], found["state"]) == (result.id, 2, "queued")
    assert json.loads(shell.piped("list", "--version", "1", "--json")) == []
    on_redis.worker("-c", "1", env=NEW)
    assert result.get(timeout=60) == "new"
    assert set(done(on_redis).values()) == {1}


def test_a_renamed_task_continues_under_its_new_name(on_redis: Any) -> None:
    old = on_redis.worker("-c", "1", env=OLD)
    result = on_redis.send("old_name", COUNT)
    on_redis.trace.await_items(5)
    old.kill("SIGTERM")
    old.await_exit(within=60)
    new = on_redis.worker("-c", "1", env=NEW)
    on_redis.trace.await_items(15)
    new.kill("SIGTERM")
    new.await_exit(within=60)
    on_redis.worker("-c", "1", env=NEW)
    assert result.get(timeout=30) == COUNT
    assert sorted(on_redis.trace.items()) == list(range(COUNT))


@pytest.mark.parametrize("how", ["--accept-source", "--step"])
def test_a_list_from_which_rows_are_removed(on_redis: Any, how: str) -> None:
    """The task fails at once, although it retries any error, and continues as the operator chooses."""
    path = on_redis.folder / "rows.json"
    table = [{"id": number, "name": f"user {number}"} for number in range(60)]
    path.write_text(json.dumps(table))
    worker = on_redis.worker("-c", "1")
    result = on_redis.send("listed")
    on_redis.trace.await_items(22)
    worker.kill("SIGTERM")
    worker.await_exit(within=60)
    finished = len(on_redis.trace.items())
    path.write_text(json.dumps([row for row in table if row["id"] not in (1, 3, 5, 7, 9)]))
    on_redis.worker("-c", "1")
    with pytest.raises(SourceChangedError, match=f"then id {finished - 1}, now id {finished + 4}") as caught:
        result.get(timeout=20)
    assert (caught.value.step, caught.value.task_id) == ("rows", result.id)
    assert on_redis.trace.items() == list(range(finished))
    shell = Shell(on_redis)
    shell.piped("retry", result.id, *([how] if how == "--accept-source" else ["--step", "rows"]))
    assert ContinuableAsyncResult(result.id, app=on_redis.client).get(timeout=30) == 55
    after = on_redis.trace.items()[finished:]
    left = [row["id"] for row in table if row["id"] not in (1, 3, 5, 7, 9)]
    assert after == (left[finished:] if how == "--accept-source" else left)
