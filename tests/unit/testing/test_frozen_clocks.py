"""Under freezegun and time-machine, dates are saved as on a worker, and the kit's clock is its own."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from celery import Celery
from freezegun import freeze_time

from celery_continuations.core import codec
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.exceptions import UnserializableValueError
from celery_continuations.execution.retries import error_countdown
from celery_continuations.sources import throttled
from celery_continuations.testing import assert_resumable, rehearse, run_until_done

MOMENT = dt.datetime(2024, 5, 5, 12, tzinfo=dt.timezone.utc)

Frozen = Callable[[], AbstractContextManager[Any]]


@contextmanager
def jumping() -> Iterator[None]:
    """Let an hour pass at each look at the clock."""
    with freeze_time(MOMENT, auto_tick_seconds=3600):
        yield


CLOCKS = {
    "freezegun": lambda: freeze_time(MOMENT),
    "freezegun, ticking": lambda: freeze_time(MOMENT, tick=True),
    "freezegun, jumping": jumping,
    "time-machine": lambda: time_machine.travel(MOMENT, tick=False),
    "time-machine, ticking": lambda: time_machine.travel(MOMENT, tick=True),
}


@pytest.fixture(params=CLOCKS)
def frozen(request: Any) -> Frozen:
    clock: Frozen = CLOCKS[request.param]
    return clock


# -- values


def values() -> dict[str, Any]:
    """Dates and datetimes of all origins, as the code of a task makes them."""
    return {
        "now": dt.datetime.now(),
        "now, UTC": dt.datetime.now(dt.timezone.utc),
        "now, zoned": dt.datetime.now(ZoneInfo("Europe/Berlin")),
        "now, local": dt.datetime.now().astimezone(),
        "today": dt.date.today(),
        "a literal": dt.datetime(2024, 1, 1),
        "a day": dt.date(2024, 1, 1),
        "the day of a moment": dt.datetime(2024, 1, 1).date(),
        "later": dt.datetime(2024, 1, 1) + dt.timedelta(1),
        "tomorrow": dt.date(2024, 1, 1) + dt.timedelta(1),
        "the least": dt.datetime.min,
        "in containers": [(dt.date(2024, 1, 1), {dt.date(2024, 1, 2): dt.datetime(2024, 1, 1)})],
    }


def test_frozen_values_are_restored_as_real_ones(frozen: Frozen) -> None:
    with frozen():
        for name, value in values().items():
            restored = codec.loads(codec.dumps(value))
            assert restored == value, name
            assert codec.dumps(restored) == codec.dumps(value), name
            assert codec.copy(value) == value, name
    restored = codec.loads(codec.dumps(value))
    assert type(restored[0][0]) is dt.date


@pytest.mark.parametrize("name", values())
def test_the_same_text_is_written_with_and_without_a_frozen_clock(name: str) -> None:
    with freeze_time(MOMENT):
        frozen = codec.dumps(values()[name])
    with time_machine.travel(MOMENT, tick=False):
        real = codec.dumps(values()[name])
    assert frozen == real


def test_what_was_saved_before_is_read_while_the_clock_is_frozen(frozen: Frozen) -> None:
    text = codec.dumps(values())
    with frozen():
        assert codec.dumps(codec.loads(text)) == text


def test_other_subclasses_of_dates_are_refused() -> None:
    class Day(dt.date):
        """Would be restored as a date."""

    with pytest.raises(UnserializableValueError, match="Day is not one of"):
        codec.dumps(Day(2024, 1, 1))


def test_the_package_may_be_imported_while_the_clock_is_frozen() -> None:
    code = """
import datetime as dt
from freezegun import freeze_time
with freeze_time("2024-05-05"):
    from celery_continuations.core import codec, step
    frozen = codec.dumps([dt.date(2024, 1, 1), dt.datetime(2024, 1, 1)])
assert codec.dumps([dt.date(2024, 1, 1), dt.datetime(2024, 1, 1)]) == frozen
assert [type(one) for one in codec.loads(frozen)] == [dt.date, dt.datetime]
assert dt.date in step._COPY_FREE and dt.datetime not in step._COPY_FREE
"""
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


# -- tasks


def test_a_task_whose_cursors_and_values_are_dates(task: Any, frozen: Frozen) -> None:
    def body(self: Any, since: dt.date) -> list[Any]:
        self.saved.setdefault("days", [])
        now = self.step("now", lambda: dt.datetime(2024, 1, 1))
        for step in self.step("days", start=dt.date.fromisoformat(since)):
            while step.cursor < dt.date(2024, 1, 4):
                days = [one for one in self.saved["days"] if one < step.cursor]
                self.saved["days"] = [*days, step.cursor]
                step.advance()
        for moment in self.iterate("moments", [dt.datetime(2024, 1, day) for day in (1, 2)]):
            assert moment >= now
        return self.saved["days"]

    made = task(body)
    with frozen():
        assert_resumable(made, "2024-01-01", pairs=20)
        expected = [dt.date(2024, 1, day) for day in (1, 2, 3)]
        assert run_until_done(rehearse(made, "2024-01-01")) == expected
        assert made("2024-01-01") == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
def test_dates_as_arguments(app: Celery, task: Any, frozen: Frozen, serializer: str) -> None:
    def body(self: Any, moment: Any) -> int:
        for _ in self.iterate("rows", range(2)):
            pass
        return dt.datetime.fromisoformat(str(moment)).year

    app.conf.accept_content = ["json", "pickle", "yaml", "msgpack"]
    with frozen():
        given = dt.datetime(2024, 1, 1) if serializer != "msgpack" else "2024-01-01"
        assert_resumable(task(body, serializer=serializer), given, pairs=5)


# -- clocks


@pytest.mark.exhaustive
def test_waits_pass_by_the_clock_of_the_run(task: Any, frozen: Frozen) -> None:
    def body(self: Any) -> str:
        self.sleep("until a moment", MOMENT + dt.timedelta(days=1))
        self.sleep("for an hour", 3600)
        return str(self.wait_for("payment", timeout=dt.timedelta(days=3), default="none"))

    made = task(body)
    with time_machine.travel(MOMENT, tick=False):
        run = rehearse(made)
        assert run_until_done(run) == "none"
        assert run.clock.skipped == 86400 + 3600 + 3 * 86400
    with frozen():
        assert_resumable(made, pairs=10)


@pytest.mark.exhaustive
def test_trials_end_in_time_while_the_clock_is_frozen(task: Any, frozen: Frozen) -> None:
    def body(self: Any) -> int:
        for _ in self.iterate("rows", range(30)):
            wait(0.002)
        return 1

    began = now()
    with frozen(), pytest.warns(UserWarning, match="left out"):
        report = assert_resumable(task(body), seconds=1)
    assert report.tried
    assert report.left_out
    assert now() - began < 30


def test_a_jumping_clock_does_not_end_the_trials_early(task: Any) -> None:
    def body(self: Any) -> int:
        for _ in self.iterate("rows", range(3)):
            time.time(), time.monotonic()
        return 1

    with jumping():
        assert assert_resumable(task(body)).left_out == ()


def now() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def wait(seconds: float) -> None:
    """Work for a while of real time."""
    until = now() + seconds
    while now() < until:
        pass


# -- one clock


def test_throttled_sources_wait_by_the_clock_of_the_run(task: Any) -> None:
    calls: list[int] = []

    def is_busy() -> bool:
        calls.append(1)
        return len(calls) in (2, 4, 6)

    def body(self: Any) -> None:
        for _ in self.iterate("rows", throttled(range(5), is_busy, backoff=3600)):
            pass

    run = rehearse(task(body))
    run_until_done(run)
    assert (run.begun, run.clock.skipped) == (4, 3 * 3600)


def test_all_waits_add_up(task: Any) -> None:
    """Each wait begins where the one before has ended, whatever the real time is."""
    answers = iter([None, None, "there"])

    def body(self: Any) -> None:
        self.sleep("sleep", 100)
        self.wait_until("poll", lambda: next(answers), every=60)
        self.wait_for("delivery", timeout=1000, default=None)
        for step in self.step("again", start=0):
            if step.cursor == 0:
                step.set(1)
            if self.saved.setdefault("resumed", 0) == 0:
                self.saved["resumed"] = 1
                self.resume_in(500)
            if step.cursor == 1:
                step.set(2)
                raise ConnectionError

    run = rehearse(task(body))
    run_until_done(run)
    assert run.clock.skipped == 100 + 2 * 60 + 1000 + 500 + error_countdown(Snapshot(), 5)


def test_a_retry_expires_by_the_clock_of_the_run(task: Any) -> None:
    from celery.exceptions import TaskRevokedError

    def body(self: Any, expires: float) -> str:
        self.step("once", lambda: 1)
        if self.request.retries == 0:
            raise self.retry(countdown=60, expires=expires)
        return "done"

    made = task(body)
    assert run_until_done(rehearse(made, 61)) == "done"
    run = rehearse(made, 59)
    with pytest.raises(TaskRevokedError, match="expired"):
        run_until_done(run)
    assert run.state == "REVOKED"
    assert run.begun == 1
