"""The explorations, and their numbers of faults: in every test run, and on demand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model import scenarios as s
from tests.model.explorer import Explorer, Report, simulated
from tests.model.scenarios import Scenario
from tests.model.world import Budget


class Exploration(NamedTuple):
    """A scenario, and how many faults its histories may have."""

    scenario: type[Scenario]
    broker: str
    is_provable: bool
    budget: Budget
    is_atomic: bool = True

    def make(self) -> Scenario:
        return self.scenario(self.broker, is_provable=self.is_provable, is_atomic=self.is_atomic)

    def __str__(self) -> str:
        where = "same machine" if self.is_provable else "other machine"
        steps = "" if self.is_atomic else ", step by step"
        counts = zip(Budget._fields[:4], self.budget, strict=False)
        faults = " ".join(f"{name[0]}{count}" for name, count in counts if count)
        at_most = f" at most {self.budget.total}" if self.budget.total < sum(self.budget[:4]) else ""
        switches = ", a switch" if self.budget.switches else ""
        return f"{self.scenario.__name__}, {self.broker}, {where}{steps}: {faults or 'none'}{at_most}{switches}"


CRASH, FREEZE, DUPLICATE, ERROR = (Budget(**{kind: 1}) for kind in Budget._fields[:4])
ANY_ONE = Budget(crashes=1, freezes=1, duplicates=1, errors=1, total=1)
TWO_CRASHES = Budget(crashes=2)
SWITCH = Budget(switches=1)

#: The faults to explore each scenario with; unlisted scenarios take any fault.  A scenario whose own crashes reach
#: the limit takes no others at that place, and a revocation reaches only one worker.
_FAULTS = {
    s.Revoked: (CRASH, ERROR),
    s.Forgotten: (Budget(),),
    s.Limited: (Budget(), CRASH, ERROR),
    s.LimitedRaising: (Budget(),),  # while the store is unavailable, one of its two failures follows the other
    s.Unsendable: (Budget(), CRASH, DUPLICATE, ERROR),
    s.Tracked: (DUPLICATE,),
    s.RevokedElsewhere: (Budget(), DUPLICATE, ERROR),
    s.Losing: (ERROR,),
    s.Looping: (CRASH, DUPLICATE),  # FREEZE takes ten seconds, and is explored on demand
    s.Stopping: (Budget(), DUPLICATE),
    s.Scattered: (Budget(), DUPLICATE),
    s.AnsweredInTime: (Budget(), CRASH),
    s.AnsweredTwice: (SWITCH,),
    s.Answered: (ANY_ONE, SWITCH),
    s.Paused: (SWITCH,),
    s.PausedShort: (CRASH,),
    s.PausedWaiting: (SWITCH,),
    s.Falling: (FREEZE,),
    s.CancelledWaiting: (SWITCH, CRASH, ERROR),
    s.RetriedTwice: (SWITCH,),
    s.Parent: (SWITCH, CRASH, ERROR),
    # A kill just after Celery has stored RETRY over REVOKED leaves that state: nothing corrects it later.
    s.Cancelled: (SWITCH, DUPLICATE, ERROR),
    s.CancelledPaused: (Budget(),),
    # The check ignores late results of a frozen execution, and whether the retry has ended.
    s.Retried: (SWITCH, CRASH, DUPLICATE, ERROR),
}
_OTHERS = (
    s.Seldom, s.Raising, s.Failing, s.Retrying, s.Rejecting, s.Revoked, s.Forgotten, s.Limited, s.LimitedRaising,
    s.Unsendable, s.Tracked, s.RevokedElsewhere, s.Backlogged, s.Losing, s.Looping, s.Falling, s.Stopping,
    s.Scattered, s.Answered, s.AnsweredInTime, s.AnsweredTwice, s.Paused, s.PausedShort, s.PausedWaiting,
    s.Cancelled, s.CancelledWaiting, s.CancelledPaused, s.Retried, s.RetriedTwice, s.Parent,
)  # fmt: skip


def short() -> Iterator[Exploration]:
    """Return every single fault, two crashes, and pairs with a freeze on the smallest task: about a minute."""
    for broker in ("filesystem", "amqp"):
        for is_provable in (True, False):
            yield Exploration(s.Plain, broker, is_provable, ANY_ONE)
    yield Exploration(s.Tiny, "redis", False, ANY_ONE)
    yield Exploration(s.Short, "filesystem", True, ANY_ONE, is_atomic=False)
    yield Exploration(s.Plain, "filesystem", False, TWO_CRASHES)
    yield Exploration(s.Plain, "amqp", True, TWO_CRASHES)
    for scenario in _OTHERS:
        for budget in _FAULTS.get(scenario, (ANY_ONE,)):
            yield Exploration(scenario, "filesystem", True, budget)


def full(most: Budget) -> Iterator[Exploration]:
    """Return all scenarios with the requested number of faults, smallest tasks first."""
    yield Exploration(s.Looping, "filesystem", True, FREEZE)
    for scenario in (s.Tiny, s.Short, s.Plain):
        for broker in s.BROKERS:
            for is_provable in (True, False):
                yield Exploration(scenario, broker, is_provable, most)
    for scenario in _OTHERS:
        for broker in s.BROKERS:
            for is_provable in (True, False):
                for budget in _FAULTS.get(scenario, (most._replace(total=min(most.total, 2)),)):
                    yield Exploration(scenario, broker, is_provable, budget)


def explore(job: tuple[Exploration, float]) -> tuple[Exploration, Report]:
    """Run one exploration for at most the given seconds, in a process of its own."""
    exploration, seconds = job
    with simulated():
        return exploration, Explorer(exploration.make(), exploration.budget).explore(seconds)
