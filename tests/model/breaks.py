"""Each rule of the protocol, broken on purpose: an exploration must notice, or it proves nothing.

A break replaces one function of the protocol by another that breaks the rule: mostly the same function, over a store
that answers or writes something else.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from celery.exceptions import Ignore

from celery_continuations.execution import leaving, message, running
from celery_continuations.execution.claiming import Claiming
from celery_continuations.protocol import claim, commands, owned, recovery, retrying
from celery_continuations.protocol.liveness import Loss
from celery_continuations.protocol.owned import OwnedRecord, Superseded
from celery_continuations.stores.base import Status
from celery_continuations.worker import verdicts
from tests.model import scenarios
from tests.model.explorer import Explorer, Report, budgets
from tests.model.faulty import (
    Breaking,
    Commanding,
    Forgetting,
    Heedless,
    KeepingTheFence,
    NeverMissing,
    Outdated,
    Pretending,
    Uncounting,
    cancels_what_has_returned,
    claiming,
    claims_own_as_anothers,
    claims_what_has_ended,
    despite,
    given,
    instead,
    leaving_alone,
    never_ended,
    over,
    owning,
    publishes_at_once,
    starts_before_its_claim,
    superseding,
    takes_a_command_for_another_owner,
    waits_for_what_is_there,
    written,
)
from tests.model.scenarios import Scenario
from tests.model.world import Budget

FOUND = "found"
REDUNDANT = "redundant"

_CLAIM = claim._Claim


@dataclass(frozen=True)
class Break:
    """A rule, and how to break it.

    Attributes:
        rule: its number, or a description if the source gives it no number.
        owner: the module or class that defines the function.
        name: the function, or a constant.
        breaking: makes what replaces it.
        scenario: where the break must be noticed.
        broker: of that scenario.
        budget: the maximum number of faults.
        is_provable: of that scenario.
        verdict: whether the break is noticed.
        why: the reason, if it is not.
    """

    rule: int | str
    owner: Any
    name: str
    breaking: Breaking
    scenario: type[Scenario] = scenarios.Plain
    broker: str = "filesystem"
    budget: Budget = field(default_factory=Budget)
    is_provable: bool = True
    verdict: str = FOUND
    why: str = ""

    def __str__(self) -> str:
        return f"{self.rule}-{self.name}-{self.scenario.__name__}".replace(" ", "_")


BREAKS: tuple[Break, ...] = (
    Break(1, _CLAIM, "of_found", claims_what_has_ended, budget=Budget(duplicates=1)),
    Break(2, claim, "NOT_CLAIMABLE", instead(frozenset()), scenarios.Paused),
    Break(
        3, _CLAIM, "is_stale",
        instead(lambda self, known: self.generation < known.generation and known.status not in claim.OWNED),
        budget=Budget(duplicates=1),
    ),
    Break(
        3, _CLAIM, "is_stale", instead(lambda self, known: self.generation < known.generation - 1),
        budget=Budget(duplicates=1), verdict=REDUNDANT,
        why="an old copy claims what is queued, once and from the record's snapshot; but before it is due",
    ),
    Break(
        4, _CLAIM, "of_dead_owner", claiming(lambda one: {"loss_of": lambda owner: one.loss_of(owner) or Loss.CRASH}),
        budget=Budget(duplicates=1),
    ),
    Break(
        5, _CLAIM, "of_dead_owner", claiming(lambda _: {"ended": never_ended}), broker="amqp",
        budget=Budget(crashes=1),
    ),
    Break(
        5, recovery, "recover", given(ended=never_ended), budget=Budget(crashes=1), verdict=REDUNDANT,
        why="the claim of the message that the sweep publishes asks the result backend, too",
    ),
    Break(
        6, _CLAIM, "succeeding", superseding(lambda fence, known: fence._replace(generation=fence.generation - 1)),
        broker="amqp", budget=Budget(crashes=1),
    ),
    Break(
        7, _CLAIM, "newest", instead(lambda self, record: record.snapshot or self.snapshot), budget=Budget(errors=1),
    ),
    Break(
        7, _CLAIM, "newest", instead(lambda self, record: self.snapshot or record.snapshot), scenarios.RejectingLate,
    ),
    Break(8, OwnedRecord, "save", owning(Heedless), budget=Budget(freezes=1)),
    Break(
        9, OwnedRecord, "finish", lambda finish: lambda self, snapshot, value: finish(self, snapshot, None),
        budget=Budget(crashes=1),
    ),
    Break(
        10, OwnedRecord, "end", lambda end: lambda self, status, snapshot, expires_in: end(self, status, snapshot, 0),
        budget=Budget(duplicates=1),
    ),
    Break(11, recovery, "recover", over(Pretending), scenarios.Looping),
    Break(
        12, recovery, "republish_overdue", leaving_alone(lambda record: record.fence.status == Status.RUNNING),
        scenarios.Rejecting, budget=Budget(crashes=1),
    ),
    Break(13, recovery, "republish_overdue", over(Uncounting), scenarios.Backlogged, budget=Budget(crashes=1)),
    Break(14, OwnedRecord, "save", owning(NeverMissing), scenarios.Losing, budget=Budget(errors=1)),
    Break(
        14, OwnedRecord, "_is_written",
        lambda original: lambda self, found, update: found is not None and original(self, found, update),
        scenarios.Losing, budget=Budget(errors=1),
    ),
    Break(15, OwnedRecord, "save", takes_a_command_for_another_owner, scenarios.Paused),
    Break(16, OwnedRecord, "wait", waits_for_what_is_there, scenarios.Answered),
    Break(
        17, recovery, "republish_overdue", leaving_alone(lambda record: record.fence.status == Status.WAITING),
        scenarios.AnsweredInTime,
    ),
    Break(18, commands, "deliver", over(Forgetting), scenarios.Answered),
    Break(19, commands, "deliver", over(KeepingTheFence), scenarios.Answered),
    Break(20, OwnedRecord, "close_wait", owning(Pretending), scenarios.AnsweredInTime),
    Break(21, commands, "pause", over(Commanding), scenarios.Paused),
    Break(21, commands, "cancel", over(Commanding), scenarios.Cancelled),
    Break(22, retrying, "retry", over(Heedless), scenarios.RetriedTwice, budget=Budget(switches=1)),
    Break(
        23, recovery, "recover", over(Outdated), scenarios.Falling, budget=Budget(freezes=1), is_provable=False,
    ),
    Break(24, verdicts, "take_to_end", instead(lambda *args, **kwargs: None), scenarios.LimitedRaising),
    Break(
        25, _CLAIM, "of_expected", claiming(lambda one: {"stores_results": False}), scenarios.RevokedElsewhere,
    ),
    Break(25, _CLAIM, "follow", instead(lambda self, record: None), scenarios.RevokedElsewhere),
    Break(
        "a second delivery does not store STARTED", Claiming, "_owned", starts_before_its_claim, scenarios.Tracked,
        budget=Budget(duplicates=1),
    ),
    Break(
        "a superseding execution inherits the command", _CLAIM, "succeeding",
        superseding(lambda fence, known: fence.with_command(None)),
        scenarios.CancelledWaiting, budget=Budget(errors=1),
    ),
    Break(
        "a caller that resumes a task just before its message comes leaves it to that", _CLAIM, "refuse",
        claiming(lambda one: {"store": KeepingTheFence(one.store)}),
        scenarios.PausedWaiting, budget=Budget(switches=1),
    ),
    Break(
        "the record of an execution that has returned is not cancelled", commands, "_refuse_over",
        cancels_what_has_returned, scenarios.Cancelled, budget=Budget(freezes=1),
    ),
    Break(
        "a cancellation outlives the state RETRY", message.Message, "_tombstone", instead(lambda self: None),
        scenarios.Cancelled,
    ),
    Break(
        "an own write whose answer was lost is not another's", OwnedRecord, "_is_written",
        written(lambda found, update: found is None),
        budget=Budget(errors=1), verdict=REDUNDANT, why="the sweep finds the record queued, and its message overdue",
    ),
    Break(
        "what a sweep has written is not an own write", OwnedRecord, "_is_written",
        written(lambda found, update: found is None or found.fence == update.fence),
        scenarios.Seldom, budget=Budget(freezes=1), is_provable=False, verdict=REDUNDANT,
        why="what a frozen execution had not saved may be done again; it hands over beside the sweep's message",
    ),
    Break(
        "an own claim whose answer was lost is not another's", _CLAIM, "of_found", claims_own_as_anothers,
        budget=Budget(errors=1), verdict=REDUNDANT,
        why="its worker's maintenance finds that no execution runs the task, a sweep later",
    ),
    Break(
        "the state is stored before the message is out", leaving.Leaving, "enter", publishes_at_once,
        scenarios.Raising, budget=Budget(duplicates=1),
    ),
    Break(
        "a record is queued before its message is out", leaving.Leaving, "_queue", instead(lambda self: None),
        budget=Budget(crashes=1),
    ),
    Break(
        "a superseded execution stores no result", OwnedRecord, "finish", despite(Superseded),
        budget=Budget(freezes=1),
    ),
    Break(
        "a superseded execution stores no failure", running.Running, "_save_failure", despite(Ignore),
        scenarios.Failing, budget=Budget(freezes=1),
    ),
    Break(
        "a refused save ends the execution", OwnedRecord, "save", despite(Superseded), budget=Budget(freezes=1),
    ),
)  # fmt: skip


def numbered() -> set[int]:
    """Return the numbers of the rules in the source."""
    source = "".join(inspect.getsource(module) for module in (claim, owned, recovery, commands, retrying, verdicts))
    return {int(number) for number in re.findall(r"# Rule (\d+)", source)}


@contextmanager
def broken(one: Break) -> Iterator[None]:
    """Break a rule, in whatever module its function was imported, and restore it afterwards."""
    original = getattr(one.owner, one.name)
    replacement = one.breaking(original)
    users = [one.owner]
    if inspect.ismodule(one.owner) and inspect.isfunction(original):
        users = [
            module
            for name, module in sorted(sys.modules.items())
            if name.startswith("celery_continuations") and vars(module).get(one.name) is original
        ]
    with ExitStack() as patches:
        for user in users:
            patches.enter_context(mock.patch.object(user, one.name, replacement))
        yield


def notice(one: Break) -> Report:
    """Explore with the rule broken, fewest faults first, until the first violation."""
    scenario = one.scenario(one.broker, is_provable=one.is_provable)
    report = Report()
    with broken(one):
        for budget in budgets(one.budget):
            report = Explorer(scenario, budget).explore()
            if report.violation is not None:
                break
    return report
