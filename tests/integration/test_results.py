"""How a process learns of a task's end from its result backend."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from celery.exceptions import TimeoutError as CeleryTimeout

from celery_continuations import ContinuableAsyncResult


def taken_back(on_redis: Any) -> ContinuableAsyncResult:
    """Return the result of a retried task while the message of its failure is unread in the connection.

    Not a fixture: a result contacts its backend when it is collected, so it must be collected before the server stops.
    """
    result = ContinuableAsyncResult(str(uuid.uuid4()), app=on_redis.client)
    backend = on_redis.client.backend
    backend.add_pending_result(result)  # listens from here on
    backend.store_result(result.id, ValueError("the first end"), "FAILURE")
    with pytest.raises(ValueError, match="the first end"):
        result.get(timeout=20)
    backend.store_result(result.id, None, "PENDING")  # as a retry in any process does
    return ContinuableAsyncResult(result.id, app=on_redis.client)


def ends(result: ContinuableAsyncResult, value: Any, state: str) -> Any:
    """Return a function that stores the task's new end once the caller has begun to wait."""

    def on_interval() -> None:
        if not stored:
            stored.append(value)
            result.backend.store_result(result.id, value, state)

    stored: list[Any] = []
    return on_interval


@pytest.mark.parametrize("propagate", [True, False])
def test_an_end_that_was_taken_back_is_not_taken_for_a_new_one(on_redis: Any, propagate: bool) -> None:
    heard = taken_back(on_redis)
    called: list[Any] = []
    value = heard.get(
        timeout=20,
        propagate=propagate,
        callback=lambda *both: called.append(both),
        on_interval=ends(heard, "mended", "SUCCESS"),
    )
    assert value == "mended"
    assert (heard.state, called) == ("SUCCESS", [(heard.id, "mended")])


def test_of_two_failures_the_last_one_is_raised(on_redis: Any) -> None:
    heard = taken_back(on_redis)
    with pytest.raises(ValueError, match="the second end"):
        heard.get(timeout=20, on_interval=ends(heard, ValueError("the second end"), "FAILURE"))


def test_an_end_that_the_backend_has_forgotten_meanwhile_still_counts(on_redis: Any) -> None:
    backend = on_redis.client.backend
    result = ContinuableAsyncResult(str(uuid.uuid4()), app=on_redis.client)

    def on_interval() -> None:
        backend.store_result(result.id, "done", "SUCCESS")
        backend.delete(backend.get_key_for_task(result.id))

    assert result.get(timeout=20, on_interval=on_interval) == "done"


def test_the_time_out_is_one_for_the_whole_wait(on_redis: Any) -> None:
    heard = taken_back(on_redis)
    with pytest.raises(CeleryTimeout):
        heard.get(timeout=1)
    heard.backend.remove_pending_result(heard)  # otherwise its backend keeps it until the server has stopped
