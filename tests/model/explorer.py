"""Explore every choice of every history, depth first.

Each history runs from its start, because the real code cannot be copied midway.  A history ends early at a place
from which everything has been tried with as many faults left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any
from unittest.mock import patch

from celery.app import trace
from celery.signals import task_revoked

from celery_continuations import conf
from celery_continuations.execution import (
    checkpoints,
    claiming,
    execution,
    leaving,
    message,
    reporting,
    triggers,
    unfit,
)
from celery_continuations.process import stop_flag
from celery_continuations.protocol import liveness
from celery_continuations.worker import lease_clock, maintenance, requests
from tests.model.promises import Violation
from tests.model.scenarios import Scenario
from tests.model.stand_ins import Clock, Now, NoWatcher, PlainInfo
from tests.model.world import Budget, Met, World


@dataclass
class Report:
    """The outcome of an exploration."""

    histories: int = 0
    met: int = 0  # histories that ended where everything had been tried before
    states: int = 0
    seconds: float = 0.0
    is_complete: bool = False
    violation: str | None = None
    history: list[str] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        text = (
            f"{self.histories} histories ({self.met} joined an earlier one), {self.states} states, {self.seconds:.1f} s"
        )
        if self.violation is not None:
            return "\n".join([f"{text}: {self.violation}", *self.history])
        return text if self.is_complete else text + ", not complete"


class Explorer:
    """Explores one scenario.

    Args:
        scenario: the task and its world.
        budget: how many faults a history may have.
        remembers: whether places are remembered; if not, every history runs to its end.
    """

    def __init__(self, scenario: Scenario, budget: Budget, *, remembers: bool = True) -> None:
        self._scenario = scenario
        self._budget = budget
        self._remembers = remembers
        self._seen: dict[bytes, list[tuple[Budget, int]]] = {}
        self._here: set[tuple[bytes, Budget]] = set()
        self._prefix: list[int] = []
        self._taken: list[tuple[int, int]] = []

    def explore(self, seconds: float = float("inf")) -> Report:
        """Run all histories, or as many as time allows, until the first violation."""
        report = Report()
        began = time.perf_counter()
        while True:
            self._run(report)
            report.seconds = time.perf_counter() - began
            report.states = len(self._seen)
            if report.violation is not None or report.seconds > seconds:
                return report
            while self._taken and self._taken[-1][0] + 1 >= self._taken[-1][1]:
                self._taken.pop()
            if not self._taken:
                report.is_complete = True
                return report
            self._prefix = [chosen for chosen, _ in self._taken]
            self._prefix[-1] += 1

    def _run(self, report: Report) -> None:
        self._taken, self._here = [], set()
        report.histories += 1
        world = World(self._scenario, self._budget, self._choose)
        try:
            world.run()
        except Met:
            report.met += 1
        except Violation as violation:
            report.violation = str(violation)
            report.history = world.history
            report.choices = [chosen for chosen, _ in self._taken]

    def _choose(self, names: list[str], world: World) -> int:
        place = len(self._taken)
        if place < len(self._prefix):
            chosen = self._prefix[place] if len(names) > 1 else 0
        else:
            chosen = 0
            if self._remembers:
                self._look(names, world)
        if len(names) > 1:
            self._taken.append((chosen, len(names)))
        return chosen

    def _look(self, names: list[str], world: World) -> None:
        key = world.key() + names[0].encode()
        if (key, world.budget) in self._here:
            world.promises.violated(1, "it goes round forever")
            assert world.violation is not None
            raise world.violation
        self._here.add((key, world.budget))
        known = self._seen.setdefault(key, [])
        if any(budget.covers(world.budget) and slack <= world.slack for budget, slack in known):
            raise Met
        known.append((world.budget, world.slack))


def budgets(most: Budget) -> Iterator[Budget]:
    """Yield all budgets up to ``most``, smallest first, so that the first violation is a short one."""
    every = [
        Budget(*counts, most.total, most.switches) for counts in product(*(range(count + 1) for count in most[:4]))
    ]
    return iter(sorted(every, key=lambda budget: sum(budget[:4])))


#: Modules that read the clock.
_TIMED = (checkpoints, leaving, message, reporting, triggers, unfit, stop_flag, lease_clock, maintenance)


@contextmanager
def simulated() -> Iterator[None]:
    """Replace the package's clock, watcher and processes by those of the world."""
    with ExitStack() as stack:
        for module in _TIMED:
            stack.enter_context(patch.object(module, "time", Clock))
        stack.enter_context(patch.object(conf, "app_setting", cache(conf.app_setting)))  # they do not change here
        stack.enter_context(patch.object(trace, "ExceptionInfo", PlainInfo))
        for module in (execution, claiming, leaving):
            stack.enter_context(patch.object(module, "watcher", NoWatcher()))
        stack.enter_context(patch.object(claiming, "new_owner", lambda worker: Now.world.new_owner(worker)))
        stack.enter_context(patch.object(maintenance, "_is_in_progress", lambda task_id: Now.world.is_at_work(task_id)))
        stack.enter_context(patch.object(requests, "new_owner", lambda worker: Now.world.new_owner(worker)))
        stack.enter_context(patch.object(requests, "runs_in", lambda *given: Now.world.runs_in(*given)))
        stack.enter_context(patch.object(liveness, "is_gone", lambda name: Now.world.is_gone(name)))
        task_revoked.connect(_on_revoked)
        stack.callback(task_revoked.disconnect, _on_revoked)
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, disabled)
        yield


def _on_revoked(sender: Any = None, request: Any = None, **kwargs: Any) -> None:
    Now.world.on_revoked(sender, request)
