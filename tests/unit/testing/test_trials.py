"""Runs are disturbed exactly where planned, though most checkpoints are only counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from celery_continuations.sources import nested
from celery_continuations.testing import Rehearsal, assert_resumable, delivered, run_until_done
from celery_continuations.testing.plans import INTERRUPT, KILL, Disturbance
from celery_continuations.testing.trials import Trial

engine = sa.create_engine("sqlite://")


def loops(self: Any) -> None:
    for _ in self.iterate("list", list("abc")):
        pass
    for _ in self.iterate("dicts", [{"id": number} for number in range(3)]):
        pass
    for _ in self.iterate("generator", (one for one in "abc")):
        pass
    for _ in self.iterate("batches", range(7), batch=3):
        pass
    for _ in self.iterate("nested", nested(range(2), lambda one: ["a", "b"])):
        pass
    for _ in self.iterate("one", ["a"]):
        pass
    for _ in self.iterate("none", []):
        pass


def blocks(self: Any) -> None:
    for step in self.step("moves", start=0):
        while step.cursor < 3:
            step.advance()
            step.checkpoint()
    self.checkpoint()
    for step in self.step("sets", start=(0, "a")):
        step.set((1, "b"))
        self.checkpoint()
        step.set((2, "c"))


def calls_and_waits(self: Any) -> None:
    self.step("call", lambda: 1)
    self.sleep("sleep", 60)
    self.wait_for("payment")
    self.step("call again", lambda: 1)
    for _ in self.iterate("rows", range(2)):
        self.checkpoint()
    self.checkpoint()


def isolated(self: Any) -> None:
    for _ in self.iterate("alone", range(3), isolated=True):
        pass
    self.step("after", lambda: 1)


def broken_off(self: Any) -> None:
    for number in self.iterate("left", range(5)):
        if number == 2:
            break
    rows = self.iterate("budget", range(3), on_error=3)
    for number in rows:
        with rows.attempt():
            if number == 1:
                raise ValueError
    self.step("after", lambda: 1)


def transactional(self: Any) -> None:
    with orm.Session(engine) as session:
        for _ in self.iterate("rows", range(3), transaction=session):
            session.execute(sa.select(1))
        for step in self.step("block", start=0, transaction=session):
            step.advance()
    self.step("after", lambda: 1)


TASKS: list[Callable[[Any], None]] = [loops, blocks, calls_and_waits, isolated, broken_off, transactional]


class Tracing(Trial):
    """Note where a run is disturbed."""

    def __init__(self, plan: Any) -> None:
        super().__init__(plan)
        self.attended = 0
        self.found: list[str] = []

    def checkpoint(self, execution: Any, run: Any) -> str | None:
        self.attended += 1
        recorder = Trial(())
        recorder.checkpoint(execution, run)
        (self._at,) = recorder.places
        return super().checkpoint(execution, run)

    def before(self, execution: Any, run: Any, what: str) -> None:
        recorder = Trial(())
        recorder.before(execution, run, what)
        (self._at,) = recorder.places
        super().before(execution, run, what)

    def left(self, snapshot: Any) -> None:
        planned = len(self._plan)
        super().left(snapshot)
        if len(self._plan) < planned:
            self.found.append(str(self._at))


def run(made: Any, trial: Trial) -> None:
    rehearsal = Rehearsal(made, faults=trial)
    with delivered(payment=1):
        rehearsal.apply((), {})
        run_until_done(rehearsal)


@pytest.mark.parametrize("function", TASKS)
@pytest.mark.parametrize("kind", [INTERRUPT, KILL])
def test_each_place_is_where_the_undisturbed_run_had_it(task: Any, function: Any, kind: str) -> None:
    made = task(function)
    recorded = Trial(())
    run(made, recorded)
    assert len(recorded.places) > 4
    for number, place in enumerate(recorded.places, 1):
        if kind == KILL or place.is_checkpoint:
            trial = Tracing((Disturbance(kind, number),))
            run(made, trial)
            assert trial.found == [str(place)], f"{kind}@{number}"


def test_few_checkpoints_are_attended(task: Any) -> None:
    """A proof of many items takes little longer than the runs themselves."""
    made = task(loops)
    for kind in (INTERRUPT, KILL):
        trial = Tracing((Disturbance(kind, 10),))
        run(made, trial)
        # those at which steps begin, of which each execution has seven, the place, and the one before
        assert trial.attended <= 2 * 7 * 2 + 2


def test_the_limit_of_an_endless_run_counts_all_places(task: Any) -> None:
    counted: list[int] = []

    def endless(self: Any) -> None:
        for step in self.step("rows", start=0):
            while not step.resumed or step.cursor >= 0:
                counted.append(1)
                step.set(step.cursor + 1)
                if not step.resumed and step.cursor == 3:
                    break

    with pytest.raises(AssertionError, match="it does not end"):
        assert_resumable(task(endless), only="interrupt@1", check=int)
    assert len(counted) < 500
