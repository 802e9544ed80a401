"""Each rule of the protocol, broken on purpose: an exploration must notice, or it proves nothing."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from celery_continuations.execution import leaving, message, running
from celery_continuations.protocol import claim, commands, owned, recovery
from tests.model import scenarios
from tests.model.explorer import Explorer, Report, budgets
from tests.model.scenarios import Scenario
from tests.model.world import Budget

FOUND = "found"
REDUNDANT = "redundant"


@dataclass(frozen=True)
class Break:
    """A rule, and how to break it.

    Attributes:
        rule: its number, or a description if the source gives it no number.
        owner: the module or class that defines the function.
        name: the function.
        old: the code to replace, at each occurrence.
        new: the replacement.
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
    old: str
    new: str
    scenario: type[Scenario] = scenarios.Plain
    broker: str = "filesystem"
    budget: Budget = field(default_factory=Budget)
    is_provable: bool = True
    verdict: str = FOUND
    why: str = ""

    def __str__(self) -> str:
        return f"{self.rule}-{self.name}-{self.scenario.__name__}".replace(" ", "_")


_CLAIM, _OWNED = claim._Claim, owned.OwnedRecord

BREAKS: tuple[Break, ...] = (
    Break(
        1, _CLAIM, "of_found", "if self.generation and self.ended(None) is not None:", "if False:",
        budget=Budget(duplicates=1),
    ),
    Break(
        2, _CLAIM, "of_found", "if known.status in NOT_CLAIMABLE:", "if False:", scenarios.Forgotten,
    ),
    Break(
        3, _CLAIM, "of_found", "if self.generation < known.generation - 1 or", "if", budget=Budget(duplicates=1),
    ),
    Break(
        3, _CLAIM, "of_found", "(is_older and known.status not in OWNED)", "False",
        budget=Budget(duplicates=1), verdict=REDUNDANT,
        why="an old copy claims what is queued, once and from the record's snapshot; but before it is due",
    ),
    Break(
        4, _CLAIM, "of_dead_owner", "loss = self.loss_of(known.owner)",
        "loss = self.loss_of(known.owner) or Loss.CRASH", budget=Budget(duplicates=1),
    ),
    Break(
        5, _CLAIM, "of_dead_owner", "result = self.ended(record)", "result = None", broker="amqp",
        budget=Budget(crashes=1),
    ),
    Break(5, recovery, "recover", "result = ended(record)", "result = None", budget=Budget(crashes=1)),
    Break(
        6, _CLAIM, "succeeding", "max(known.generation, self.generation)",
        "max(known.generation, self.generation) - 1", broker="amqp", budget=Budget(crashes=1),
    ),
    Break(
        7, _CLAIM, "newest", "if self.snapshot and self.generation >= known.generation:", "if False:",
        budget=Budget(errors=1),
    ),
    Break(
        7, _CLAIM, "newest", "if self.snapshot and self.generation >= known.generation:", "if self.snapshot:",
        scenarios.RejectingLate,
    ),
    Break(
        8, _OWNED, "save", "self.fence, Update(self.fence, snapshot)):",
        "(self._store.read(self._task_id) or self).fence, Update(self.fence, snapshot)):",
        budget=Budget(freezes=1),
    ),
    Break(9, _OWNED, "finish", "value=value", "value=None", budget=Budget(crashes=1)),
    Break(10, _OWNED, "end", "expires_in=expires_in", "expires_in=0", budget=Budget(duplicates=1)),
    Break(
        11, recovery, "recover", "if not store.compare_and_swap(", "if False and not store.compare_and_swap(",
        scenarios.Looping,
    ),
    Break(
        12, recovery, "republish_overdue", "(known.status == Status.RUNNING and known.owner)",
        "known.status == Status.RUNNING", scenarios.Rejecting, budget=Budget(crashes=1),
    ),
    Break(
        13, recovery, "republish_overdue", "+ 1 if known.status == Status.QUEUED else 0", "* 0",
        scenarios.Backlogged, budget=Budget(crashes=1),
    ),
    Break(
        14, _OWNED, "save", "if not self._store.compare_and_swap(self._task_id, None, lost):", "if True:",
        scenarios.Losing, budget=Budget(errors=1),
    ),
    Break(
        14, _OWNED, "_is_written", "return True", "return False", scenarios.Losing, budget=Budget(errors=1),
    ),
    Break(
        15, _OWNED, "save", "if not self._is_own(found.fence):", "if True:", scenarios.Paused,
    ),
    Break(
        16, _OWNED, "wait", "if is_there(inbox):", "if False:", scenarios.Answered,
    ),
    Break(
        17, recovery, "republish_overdue", "if known.status == Status.WAITING:", "if False:",
        scenarios.AnsweredInTime,
    ),
    Break(
        18, commands, "deliver", "inbox=text,", "inbox=None if is_alone else text,", scenarios.Answered,
    ),
    Break(
        19, commands, "deliver", "Fence(known.generation, Status.QUEUED) if known and waits else known",
        "known", scenarios.Answered,
    ),
    Break(
        20, _OWNED, "close_wait", "if self._store.compare_and_swap(self._task_id, found.fence, closed):", "if True:",
        scenarios.AnsweredInTime,
    ),
    Break(
        21, commands, "pause", "if known is not None and known.owner and known.status == Status.RUNNING:", "if False:",
        scenarios.Paused,
    ),
    Break(
        21, commands, "cancel", "if known is not None and known.owner and known.status == Status.RUNNING:", "if False:",
        scenarios.Cancelled,
    ),
    Break(
        22, commands, "retry", "store.compare_and_swap(task_id, record.fence,",
        "store.compare_and_swap(task_id, (store.read(task_id) or record).fence,", scenarios.RetriedTwice,
        budget=Budget(switches=1),
    ),
    Break(
        23, recovery, "recover", "Update(left, due_in=due_in)",
        "Update(left, with_loss(record.snapshot, loss), due_in=due_in)",
        scenarios.Falling, budget=Budget(freezes=1), is_provable=False,
    ),
    Break(
        "a superseding execution inherits the command", _CLAIM, "succeeding", ".with_command(known.command)", "",
        scenarios.CancelledWaiting, budget=Budget(errors=1),
    ),
    Break(
        "a caller that resumes a task just before its message comes leaves it to that", _CLAIM, "refuse",
        "known._replace(message_saved=True)", "known", scenarios.PausedWaiting, budget=Budget(switches=1),
    ),
    Break(
        "the record of an execution that has returned is not cancelled", commands, "_refuse_over",
        "if record.value else", "if False else", scenarios.Cancelled, budget=Budget(freezes=1),
    ),
    Break(
        "a cancellation outlives the state RETRY", message.Message, "was_cancelled", "if not self.store.keeps:",
        "if True:", scenarios.Cancelled,
    ),
    Break(
        "an own write whose answer was lost is not another's", _OWNED, "_is_written",
        "found.fence == update.fence", "False", budget=Budget(errors=1), verdict=REDUNDANT,
        why="the sweep finds the record queued, and its message overdue",
    ),
    Break(
        "what a sweep has written is not an own write", _OWNED, "_is_written",
        "and update.snapshot in (None, found.snapshot)", "",
        scenarios.Seldom, budget=Budget(freezes=1), is_provable=False, verdict=REDUNDANT,
        why="what a frozen execution had not saved may be done again; it hands over beside the sweep's message",
    ),
    Break(
        "an own claim whose answer was lost is not another's", _CLAIM, "of_found", "if known.owner == self.owner:",
        "if False:", budget=Budget(errors=1), verdict=REDUNDANT,
        why="its worker's maintenance finds that no execution runs the task, a sweep later",
    ),
    Break(
        "the state is stored before the message is out", leaving.Leaving, "enter",
        "self._execution.phase = self", "self._execution.phase = self; self.publish()",
        scenarios.Raising, budget=Budget(duplicates=1),
    ),
    Break(
        "a record is queued before its message is out", leaving.Leaving, "_queue",
        "owned.queue(given.snapshot, _delay(given.options), given.message)", "pass", budget=Budget(crashes=1),
    ),
    Break(
        "a superseded execution stores no result", _OWNED, "finish",
        "self._write(Update(returned, snapshot, value=value), heeds_commands=False)",
        "self._store.compare_and_swap(self._task_id, self.fence, Update(returned, snapshot, value=value))",
        budget=Budget(freezes=1),
    ),
    Break(
        "a superseded execution stores no failure", running.Running, "_save_failure",
        "with self.ownership.writing() as owned:\n            owned.save(self.checkpoints.timed_text())",
        "try:\n            self.ownership.record.save(self.checkpoints.timed_text())\n"
        "        except Exception:\n            pass",
        scenarios.Failing, budget=Budget(freezes=1),
    ),
    Break(
        "a refused save ends the execution", _OWNED, "save", "raise Superseded", "return", budget=Budget(freezes=1),
    ),
)  # fmt: skip


def numbered() -> set[int]:
    """Return the numbers of the rules in the source."""
    source = "".join(inspect.getsource(module) for module in (claim, owned, recovery, commands))
    return {int(number) for number in re.findall(r"# Rule (\d+)", source)}


@contextmanager
def broken(one: Break) -> Iterator[None]:
    """Break a rule in the live code, wherever it was imported, and restore it afterwards."""
    function = getattr(one.owner, one.name)
    source = textwrap.dedent(inspect.getsource(function))
    assert one.old in source, f"rule {one.rule}: {one.name} has no {one.old!r}"
    changed: dict[str, Any] = {}
    code = compile("from __future__ import annotations\n" + source.replace(one.old, one.new), "broken", "exec")
    exec(code, function.__globals__, changed)
    mended = function.__code__
    function.__code__ = changed[one.name].__code__
    try:
        yield
    finally:
        function.__code__ = mended


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
