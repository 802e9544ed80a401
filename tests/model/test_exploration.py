"""No history of the real code breaks a promise, and breaking any rule is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.model import scenarios, suite
from tests.model.breaks import BREAKS, FOUND, Break, notice, numbered
from tests.model.explorer import Explorer, simulated
from tests.model.suite import Exploration
from tests.model.world import Budget


@pytest.fixture(autouse=True)
def simulation() -> Iterator[None]:
    with simulated():
        yield


@pytest.mark.timeout(300)
@pytest.mark.parametrize("exploration", list(suite.short()), ids=str)
def test_no_history_breaks_a_promise(exploration: Exploration, record_property: Callable[[str, object], None]) -> None:
    report = Explorer(exploration.make(), exploration.budget).explore()
    record_property("histories", report.histories)
    record_property("seconds", report.seconds)
    assert report.violation is None, str(report)
    assert report.is_complete


def test_a_place_that_was_met_before_need_not_be_explored_again() -> None:
    scenario = scenarios.Tiny("filesystem")
    for budget in (Budget(crashes=1), Budget(freezes=1)):
        every = Explorer(scenario, budget, remembers=False).explore()
        fewer = Explorer(scenario, budget).explore()
        assert every.violation is None and fewer.violation is None
        assert every.histories >= fewer.histories and fewer.met


@pytest.mark.parametrize("one", BREAKS, ids=str)
def test_a_broken_rule_is_missed(one: Break) -> None:
    report = notice(one)
    if one.verdict == FOUND:
        assert report.violation is not None, f"breaking rule {one.rule} is not noticed"
    else:
        assert report.violation is None, f"rule {one.rule} is not {one.verdict}: {report}"
        assert one.why


def test_every_rule_is_broken() -> None:
    assert numbered() == {one.rule for one in BREAKS if isinstance(one.rule, int)}


def test_what_a_frozen_execution_stores_late_is_not_held_off() -> None:
    """A known limit: when it wakes it overwrites its successor's FAILURE with RETRY."""
    report = Explorer(scenarios.Overwritten("filesystem"), Budget(freezes=1)).explore()
    assert report.violation == "promise 3: FAILURE 'ValueError' was overwritten by RETRY 'Interrupted'"
