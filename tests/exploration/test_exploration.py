"""Every crash point of small tasks, and each rule of the protocol broken in turn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from celery_continuations.stores import rules
from tests.exploration.breaks import Break, Unseen, breaks, broken
from tests.exploration.explorer import Explorer, Report, simulated
from tests.exploration.scenarios import (
    BROKERS,
    EVERY,
    Looping,
    Plain,
    Raising,
    Revoked,
    Scattered,
    Scenario,
    Short,
    Stopping,
)
from tests.exploration.world import Budget

UNIT = Path(__file__).parents[1] / "unit"

# A crash, a freeze, or a duplicate delivery.
ONE = Budget(1, 1, 1, total=1)

# To the end: one fault; two crashes; a store that fails once. On Redis, which may return a message at any later
# time, two crashes are too many histories for here.
TO_THE_END = [
    (broker, budget)
    for broker in BROKERS
    for budget in (ONE, Budget(crashes=2), Budget(errors=1))
    if (broker, budget.crashes) != ("redis", 2)
]

# Celery lets RETRY and SUCCESS overwrite FAILURE and REVOKED: what a frozen worker stores when it thaws cannot be held.
WITHOUT_FREEZE = (Raising, Revoked)

# These die by themselves, so that there are many places to die in besides.
LARGE = (Looping, Stopping, Scattered)

# Two crashes, a freeze and a duplicate delivery, for as long as this takes; make explore goes on.
ALL, SECONDS = Budget(2, 1, 1), 12.0


def explore(scenario: Scenario, budget: Budget, capsys: Any, seconds: float = float("inf")) -> Report:
    with simulated():
        report = Explorer(scenario, budget).explore(seconds)
    with capsys.disabled():
        print(f"\n{scenario}, {budget}: {report}", end="")
    assert report.violation is None, str(report)
    return report


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("broker", "budget"), TO_THE_END, ids=str)
def test_a_task_is_cut_off_at_every_call(broker: str, budget: Budget, capsys: Any) -> None:
    assert explore(Short(broker), budget, capsys).is_complete


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [kind for kind in EVERY if kind is not Short], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("is_provable", [True, False], ids=["same machine", "other machine"])
def test_every_kind_of_task_with_one_fault(kind: Any, is_provable: bool, capsys: Any) -> None:
    budget = ONE._replace(freezes=0) if kind in WITHOUT_FREEZE + LARGE else ONE
    assert explore(kind("amqp", is_provable=is_provable), budget, capsys).is_complete


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", BROKERS)
def test_two_crashes_a_freeze_and_a_duplicate_for_a_while(broker: str, capsys: Any) -> None:
    explore(Plain(broker, is_provable=False), ALL, capsys, SECONDS)


@pytest.mark.parametrize("number", sorted(breaks()))
def test_a_broken_rule_is_found(number: int) -> None:
    one = breaks()[number]
    if isinstance(one, Unseen):
        assert any(f"def {one.test}(" in path.read_text() for path in UNIT.glob("test_*.py")), one
        return
    assert isinstance(one, Break)
    with simulated(), broken(one):
        report = Explorer(one.scenario, one.budget).explore(60)
    assert report.violation is not None, f"rule {number} is broken, and nothing shows it: {report}"
    with simulated():
        whole = Explorer(one.scenario, one.budget).explore(60)
    assert whole.violation is None, "and it is whole again"


def test_every_rule_is_broken() -> None:
    marked = re.findall(r"# Rule (\d+)\b", Path(rules.__file__).read_text())
    assert sorted(breaks()) == sorted({int(number) for number in marked})
