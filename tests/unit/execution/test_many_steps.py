"""A step for each item: what it costs, the warning, and the end of what a snapshot holds."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from celery import states
from hypothesis import given
from hypothesis import strategies as st

from celery_continuations import SnapshotTooLargeError
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.execution import reporting

pytestmark = pytest.mark.exhaustive


def steps(count: int, *, blocks: bool = False, stop_at: int | None = None, worker: Any = None) -> Any:
    def body(self: Any) -> None:
        for number in range(count):
            if number == stop_at and self.continuation.resumptions == 0:
                worker.stop()
            if blocks:
                for _ in self.step(f"item-{number}"):
                    pass
            else:
                self.step(f"item-{number}", done.append, number)

    done: list[int] = []
    body.done = done  # type: ignore[attr-defined]
    return body


@pytest.fixture(autouse=True)
def nothing_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "_reported", set())


@pytest.mark.parametrize("blocks", [False, True])
def test_each_step_costs_the_same(task: Any, blocks: bool) -> None:
    def seconds(count: int) -> float:
        made = task(steps(count, blocks=blocks), continuation_max_snapshot=10**6)
        began = time.process_time()
        made()
        return time.process_time() - began

    seconds(100)
    few, many = seconds(1000), seconds(8000)
    assert many < 24 * few, "64 times if each of them writes all"


@given(st.data())
def test_a_snapshot_has_the_text_of_its_steps_whatever_was_done_to_them(data: st.DataObject) -> None:
    snapshot, names = Snapshot(), [f"step-{number}" for number in range(8)]
    for number in range(data.draw(st.integers(1, 12))):
        what = data.draw(st.sampled_from(["complete", "complete", "complete", "reopen", "return", "drop", "dump"]))
        left = [name for name in names if name not in snapshot.completed]
        last = next(reversed(snapshot.completed), None)
        if what == "complete" and left:
            kind = data.draw(st.sampled_from(["call", "block", "sleep"]))
            snapshot.complete(data.draw(st.sampled_from(left)), kind, Outcome("done", [number]))
        elif what == "reopen" and last:
            snapshot.reopen(last, [])
        elif what == "return" and last:
            snapshot.return_to(data.draw(st.sampled_from(list(snapshot.completed))))
        elif what == "drop" and last:  # as changed code does
            name = data.draw(st.sampled_from(list(snapshot.completed)))
            snapshot.completed.pop(name)
            snapshot.kinds.pop(name, None)
        elif what == "dump":
            snapshot.dumps()
        found = json.loads(snapshot.dumps())
        expected = [[name, one.kind, one.data] for name, one in snapshot.completed.items()]
        assert found.get("completed", []) == expected
        assert found["kinds"] == snapshot.kinds
        assert Snapshot.loads(snapshot.dumps()) == snapshot


def many_steps(caplog: Any) -> list[Any]:
    return [entry for entry in caplog.records if getattr(entry, "action", None) == "many_steps"]


def test_at_500_steps_there_is_one_warning(worker: Any, task: Any, caplog: Any) -> None:
    result = task(steps(700, stop_at=600, worker=worker)).apply_async()
    worker.drain()
    assert result.state == states.SUCCESS
    assert len(worker.deliveries) == 2
    (warning,) = many_steps(caplog)
    assert warning.levelname == "WARNING"
    assert "step item-499 is number 500 of this task" in warning.getMessage()
    assert "write `for item in self.iterate(name, items):`" in warning.getMessage()


def test_in_a_direct_call_too(task: Any, caplog: Any) -> None:
    task(steps(499))()
    assert not many_steps(caplog)
    task(steps(501))()
    assert len(many_steps(caplog)) == 1


@pytest.mark.parametrize("is_direct", [True, False])
def test_a_step_that_might_not_fit_does_not_begin(worker: Any, task: Any, is_direct: bool) -> None:
    body = steps(4000)
    made = task(body, continuation_max_snapshot=32_000)
    with pytest.raises(SnapshotTooLargeError, match=r"Step 'item-\d+' was not begun\. Loop over") as error:
        if is_direct:
            made()
        else:
            result = made.apply_async()
            worker.drain()
            result.get()
    assert f"{len(body.done):,} completed steps" in str(error.value), "each that has run is saved"
    assert 1000 < len(body.done) < 1500
    if not is_direct:
        made.continuation_max_snapshot = 256_000
        result.retry()
        worker.drain()
        assert result.state == states.SUCCESS
        assert body.done == list(range(4000)), "none ran twice"


def test_what_had_more_steps_is_still_read(worker: Any, task: Any, record: Any) -> None:
    """A snapshot that an earlier release has filled."""
    completed = {f"item-{number}": Outcome() for number in range(1200)}
    text = Snapshot(completed=completed).dumps()
    assert Snapshot.loads(text).completed == completed
    assert Snapshot.loads(text).dumps() == text


def test_a_log_record_names_the_last_steps(worker: Any, task: Any, caplog: Any) -> None:
    caplog.set_level("INFO", "celery_continuations")
    task(steps(60, stop_at=50, worker=worker)).apply_async()
    worker.drain()
    (resumed,) = [entry for entry in caplog.records if getattr(entry, "action", None) == "resumed"]
    assert resumed.getMessage().endswith(
        "50 steps, the last ones " + ", ".join(f"item-{number}" for number in range(30, 50))
    )
    assert len(resumed.data["completed"]) == 50
