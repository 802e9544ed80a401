"""Each rule of the protocol, broken: what the source says, and what it then says instead."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from celery_continuations.stores import rules
from tests.exploration import scenarios
from tests.exploration.scenarios import Scenario
from tests.exploration.world import Budget


class Break(NamedTuple):
    """How a rule is broken, and where that shows.

    Attributes:
        old: a text of rules.py; every place of it is replaced.
        new: by this.
        scenario: in which a promise is then violated.
        budget: with so many faults.
    """

    old: str
    new: str
    scenario: Scenario
    budget: Budget


class Unseen(NamedTuple):
    """Why no history shows that a rule is broken, and the test that does."""

    reason: str
    test: str


def breaks() -> dict[int, Break | Unseen]:
    """Return each rule by its number."""
    return {
        1: Break(
            "if generation and ended(None) is not None:",
            "if False:",
            scenarios.Short(),
            Budget(duplicates=1),
        ),
        2: Unseen(
            "only where a task is revoked, waits or is paused while its message is out does that meet a record of its "
            "own generation, and that is not simulated; older messages end by rule 3",
            "test_rule_2_what_has_ended_is_not_touched",
        ),
        3: Break(
            "if generation < known.generation - 1 or (generation < known.generation and known.status not in OWNED):",
            "if False:",
            scenarios.Short(),
            Budget(duplicates=1),
        ),
        4: Break(
            "            if dead is None:\n                return None\n            # Rule 5",
            "            # Rule 5",
            scenarios.Short(),
            Budget(duplicates=1),
        ),
        5: Break("if result is not None:", "if False:", scenarios.Short(), Budget(crashes=1)),
        6: Break(
            "mine = Fence(max(known.generation, generation) + 1, Status.RUNNING, owner)",
            "mine = Fence(max(known.generation, generation), Status.RUNNING, owner)",
            scenarios.Short(),
            Budget(crashes=1, duplicates=1),
        ),
        7: Break(
            "newest = snapshot if snapshot and generation >= known.generation else record.snapshot or snapshot",
            "newest = record.snapshot or snapshot",
            scenarios.Plain(),
            Budget(errors=1),
        ),
        8: Break(
            "if store.swap(task_id, fence, Record(fence, snapshot)):",
            "found = store.read(task_id)\n    if store.swap(task_id, found and found.fence, Record(fence, snapshot)):",
            scenarios.Plain(),
            Budget(freezes=1),
        ),
        9: Break(
            "Record(finishing, snapshot, value=value)",
            "Record(finishing, snapshot)",
            scenarios.Short(),
            Budget(crashes=1),
        ),
        10: Break(
            "expires_in=expires_in) is not None", "expires_in=0.0) is not None", scenarios.Short(), Budget(duplicates=1)
        ),
        11: Break(
            "    if not store.swap(task_id, known, Record(queued, snapshot), due_in=PATIENCE):\n        return None\n",
            "",
            scenarios.Short(),
            Budget(crashes=1),
        ),
        12: Break(
            "if known.status not in (Status.QUEUED, Status.RUNNING) or "
            "(known.status == Status.RUNNING and known.owner):",
            "if known.status != Status.QUEUED:",
            scenarios.Rejecting("filesystem"),
            Budget(crashes=1),
        ),
        13: Unseen("it keeps copies few, and copies are harmless", "test_a_backlog_does_not_grow_by_it"),
        14: Unseen("the simulated store loses nothing", "test_a_record_that_the_store_has_lost_is_written_again"),
    }


@contextmanager
def broken(one: Break) -> Iterator[None]:
    """Run with a rule broken."""
    source = inspect.getsource(rules)
    assert one.old in source, f"not in rules.py: {one.old}"
    namespace = vars(rules)
    kept = dict(namespace)
    try:
        exec(compile(source.replace(one.old, one.new), str(rules.__file__), "exec"), namespace)
        yield
    finally:
        namespace.update(kept)
