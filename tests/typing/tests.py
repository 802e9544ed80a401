"""The testing kit."""

from __future__ import annotations

from typing_extensions import assert_type

from celery_continuations import ContinuableTask, continuable
from celery_continuations.testing import (
    Clock,
    Rehearsal,
    Report,
    assert_resumable,
    delivered,
    interrupt_after_step,
    interrupt_during_step,
    rehearse,
    run_until_done,
)


@continuable
def publish(self: ContinuableTask, number: int) -> str:
    return str(number)


def not_a_task(number: int) -> str:
    return str(number)


def test_publish() -> None:
    assert_resumable(publish, 3, check=lambda: [1], setup=list, kills=False)
    assert_resumable(publish, 3, upgrade_from=publish, expected=[1])
    assert_type(assert_resumable(publish, 3, returned=len, seconds=None), Report)
    assert_resumable(publish, 3, returned=None)
    # wrong: mypy=call-arg pyright=reportCallIssue
    assert_resumable(publish, 3, chekc=lambda: [1])
    # wrong: mypy=arg-type pyright=reportArgumentType
    assert_resumable(not_a_task, 3)
    with delivered(approval="yes"), interrupt_after_step(publish, "first") as run:
        assert_type(run, Rehearsal)
    with interrupt_during_step(run, "second", cursor=3) as again:
        assert_type(again.clock, Clock)
        # wrong: mypy=attr-defined pyright=reportAttributeAccessIssue
        again.curser
    assert_type(rehearse(publish, 3), Rehearsal)
    # wrong: mypy=arg-type pyright=reportArgumentType
    rehearse(publish, "3")
    # wrong: mypy=call-arg pyright=reportCallIssue
    rehearse(publish, numbre=3)
    # wrong: mypy=call-arg pyright=reportCallIssue
    run_until_done(rehearse(publish, 3), execution=3)
