"""Each rule of the protocol, broken on purpose: an exploration that does not notice would prove nothing."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from celery_continuations.execution import execution
from celery_continuations.protocol import commands, rules
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
        rule: its number, or words where the source gives it none.
        owner: the module or class that has the function.
        name: the function.
        old: what stands there; each place where it does is changed.
        new: what is put there.
        scenario: where it is to be noticed.
        broker: of that scenario.
        budget: with how many faults at most.
        is_provable: of that scenario.
        verdict: whether it is noticed.
        why: if it is not.
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


_CLAIM, _SAVE, _RECOVER, _REMIND = "claim", "save", "recover", "remind"
_EXECUTION = execution.Execution

BREAKS: tuple[Break, ...] = (
    Break(
        1, rules, _CLAIM, "if generation and ended(None) is not None:", "if False:", budget=Budget(duplicates=1)
    ),
    Break(
        2, rules, _CLAIM, "if known.status in ENDED:", "if False:", scenarios.Forgotten,
    ),
    Break(
        3, rules, _CLAIM, "if generation < known.generation - 1 or", "if", budget=Budget(duplicates=1),
    ),
    Break(
        3, rules, _CLAIM, "(generation < known.generation and known.status not in OWNED)", "False",
        budget=Budget(duplicates=1), verdict=REDUNDANT,
        why="an old copy takes up what is queued, once and from the record's snapshot; but before it is due",
    ),
    Break(
        4, rules, _CLAIM, "dead = death(known.owner)", "dead = death(known.owner) or Death.CRASHED",
        budget=Budget(duplicates=1),
    ),
    Break(
        5, rules, _CLAIM, "result = ended(record)", "result = None", broker="amqp", budget=Budget(crashes=1)
    ),
    Break(5, rules, _RECOVER, "result = ended(record)", "result = None", budget=Budget(crashes=1)),
    Break(
        6, rules, _CLAIM, "max(known.generation, generation) + 1", "max(known.generation, generation)", broker="amqp",
        budget=Budget(crashes=1),
    ),
    Break(
        7, rules, _CLAIM, "snapshot if snapshot and generation >= known.generation else record.snapshot or snapshot",
        "record.snapshot or snapshot", budget=Budget(errors=1),
    ),
    Break(
        7, rules, _CLAIM, "snapshot if snapshot and generation >= known.generation else record.snapshot or snapshot",
        "snapshot or record.snapshot", scenarios.RejectingLate,
    ),
    Break(
        8, rules, _SAVE, "store.swap(task_id, fence, Record(fence, snapshot)):",
        "store.swap(task_id, (store.read(task_id) or Record(fence)).fence, Record(fence, snapshot)):",
        budget=Budget(freezes=1),
    ),
    Break(9, rules, "finish", "value=value", "value=None", budget=Budget(crashes=1)),
    Break(
        10, rules, "end", "return _swap_own(", "return store.delete(task_id, fence) or _swap_own(",
        budget=Budget(duplicates=1),
    ),
    Break(
        11, rules, _RECOVER, "if not store.swap(", "if False and not store.swap(", scenarios.Looping,
    ),
    Break(
        12, rules, _REMIND, "(known.status == Status.RUNNING and known.owner)", "known.status == Status.RUNNING",
        scenarios.Rejecting, budget=Budget(crashes=1),
    ),
    Break(
        13, rules, _REMIND, "+ 1 if known.status == Status.QUEUED else 0", "* 0", scenarios.Backlogged,
        budget=Budget(crashes=1),
    ),
    Break(
        14, rules, _SAVE, "return fence if store.swap(task_id, None, Record(fence, snapshot, message())) else None",
        "return None", scenarios.Losing,
        budget=Budget(errors=1),
    ),
    Break(
        14, rules, "_swap_own", "over from anybody\n        return record.fence", "over\n        return None",
        scenarios.Losing,
        budget=Budget(errors=1),
    ),
    Break(
        15, rules, _SAVE, 'if found.fence.wishing("") != fence.wishing(""):', "if True:", scenarios.Paused,
    ),
    Break(
        16, rules, "wait", "if is_there(inbox):", "if False:", scenarios.Answered,
    ),
    Break(
        17, rules, _REMIND, "if known.status == Status.WAITING:", "if False:", scenarios.AnsweredInTime,
    ),
    Break(
        18, commands, "deliver", "Record(fence, inbox=text)", "Record(fence, inbox=None if is_alone else text)",
        scenarios.Answered,
    ),
    Break(
        19, commands, "deliver", "Fence(known.generation, Status.QUEUED) if known and waits else known",
        "known", scenarios.Answered,
    ),
    Break(
        20, commands, "close_wait",
        'if store.swap(task_id, record.fence, Record(record.fence, inbox=inbox.dumps()), inbox=record.inbox or ""):',
        "if True:", scenarios.AnsweredInTime,
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
        22, commands, "retry", "store.swap(task_id, record.fence,",
        "store.swap(task_id, (store.read(task_id) or record).fence,", scenarios.RetriedTwice,
        budget=Budget(switches=1),
    ),
    Break(
        23, rules, _RECOVER, "Record(left), due_in=due_in",
        "Record(left, _with_loss(record.snapshot, dead)), due_in=due_in",
        scenarios.Falling, budget=Budget(freezes=1), is_provable=False,
    ),
    Break(
        "a wish is kept by whoever succeeds the execution", rules, _CLAIM, ".wishing(known.wish)", "",
        scenarios.CancelledWaiting, budget=Budget(errors=1),
    ),
    Break(
        "who resumes a task just before it comes leaves it to its message", rules, _CLAIM, '"kept"', '""',
        scenarios.PausedWaiting, budget=Budget(switches=1),
    ),
    Break(
        "a finished execution's record is not cancelled", commands, "_refuse_over", "if record.value else",
        "if False else", scenarios.Cancelled, budget=Budget(freezes=1),
    ),
    Break(
        "a cancellation outlives the state RETRY", _EXECUTION, "_was_cancelled", "if not self._store.keeps:",
        "if True:", scenarios.Cancelled,
    ),
    Break(
        "an own write whose answer was lost is no other's", rules, "_swap_own", "found.fence == record.fence", "False",
        budget=Budget(errors=1), verdict=REDUNDANT, why="the sweep finds the record queued, a patience later",
    ),
    Break(
        "what a sweep has written is no own write", rules, "_swap_own", "and record.snapshot in (None, found.snapshot)",
        "", scenarios.Seldom, budget=Budget(freezes=1), is_provable=False, verdict=REDUNDANT,
        why="what a frozen execution had not saved may be done again; it hands over beside the sweep's message",
    ),
    Break(
        "an own claim whose answer was lost is no other's", rules, _CLAIM, 'if known.wishing("").owner == owner:',
        "if False:", budget=Budget(errors=1), verdict=REDUNDANT,
        why="its worker's keeper finds that nobody works on the record, a sweep later",
    ),
    Break(
        "the state is stored before the message is out", _EXECUTION, "_leave_to_message",
        'self._handover = {"generation": generation, "snapshot": text, "options": options}',
        'self._handover = {"generation": generation, "snapshot": text, "options": options}; self.publish()',
        scenarios.Raising, budget=Budget(duplicates=1),
    ),
    Break(
        "a record is queued before its message is out", _EXECUTION, "_leave_to_message",
        "fence = rules.interrupt(self._store, self.request.id, self._fence, text, _delay(options), message)",
        "fence = self._fence", budget=Budget(crashes=1),
    ),
    Break(
        "a succeeded execution stores no result", _EXECUTION, "finish", "self._end_superseded()", "fence = None",
        budget=Budget(freezes=1),
    ),
    Break(
        "a succeeded execution stores no failure", _EXECUTION, "_save_failure", "self._end_superseded()", "pass",
        scenarios.Failing, budget=Budget(freezes=1),
    ),
    Break(
        "a refused save ends the execution", _EXECUTION, "save",
        "if kept is None:\n            self._interrupt_superseded()", "kept = kept or self._fence",
        budget=Budget(freezes=1),
    ),
)  # fmt: skip


def numbered() -> set[int]:
    """Return the numbers of the rules that the source has."""
    return {
        int(number) for number in re.findall(r"# Rule (\d+)", inspect.getsource(rules) + inspect.getsource(commands))
    }


@contextmanager
def broken(one: Break) -> Iterator[None]:
    """Break a rule in the live code, and mend it afterwards."""
    function = getattr(one.owner, one.name)
    source = textwrap.dedent(inspect.getsource(function))
    assert one.old in source, f"rule {one.rule}: {one.name} has no {one.old!r} any more"
    changed: dict[str, Any] = {}
    code = compile("from __future__ import annotations\n" + source.replace(one.old, one.new), "broken", "exec")
    exec(code, function.__globals__, changed)
    setattr(one.owner, one.name, changed[one.name])
    try:
        yield
    finally:
        setattr(one.owner, one.name, function)


def notice(one: Break) -> Report:
    """Explore with the rule broken, the fewest faults first, up to the first violation."""
    scenario = one.scenario(one.broker, is_provable=one.is_provable)
    report = Report()
    with broken(one):
        for budget in budgets(one.budget):
            report = Explorer(scenario, budget).explore()
            if report.violation is not None:
                break
    return report
