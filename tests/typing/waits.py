"""Waits: what comes of them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from celery import Celery, chain, group, shared_task
from typing_extensions import assert_type

from celery_continuations import ContinuableTask, continuable

app = Celery("shop")


# wrong: mypy-=untyped-decorator
@shared_task
def double(number: int) -> int:
    return 2 * number


@continuable
def text_of(self: ContinuableTask, number: int) -> str:
    return str(number)


class Report:
    """What an external service makes."""


def report() -> Report | None:
    return None


@continuable
def waits(self: ContinuableTask) -> None:
    assert_type(self.wait_for("approval", timeout=timedelta(days=2)), Any)
    assert_type(self.wait_for("approval", timeout=3600, default="no"), Any)
    # wrong: mypy=arg-type pyright=reportArgumentType
    self.wait_for("approval", timeout="3600")
    # wrong: mypy=call-arg pyright=reportCallIssue
    self.wait_for("approval", timout=3600)
    # wrong: mypy+=attr-defined pyright=reportAttributeAccessIssue
    self.wait_fro("approval")
    self.sleep("pause", 3)
    self.sleep("pause", timedelta(hours=1))
    self.sleep("pause", datetime(2030, 1, 1))
    # wrong: mypy=arg-type pyright=reportArgumentType
    self.sleep("pause", "tomorrow")
    assert_type(self.wait_until("report", report, every=60), Report)
    assert_type(self.wait_until("ready", lambda: True, every=60, timeout=timedelta(days=1)), bool)
    # wrong: mypy=call-arg pyright=reportCallIssue
    self.wait_until("report", report)
    # wrong: mypy=arg-type,misc pyright=reportArgumentType
    self.wait_until("report", lambda number: number, every=60)


@continuable
def back_off(self: ContinuableTask) -> int:
    for step in self.step("import", start=0):
        if step.cursor == 3:
            self.resume_in(timedelta(minutes=5))
        return step.cursor
    # wrong: mypy=arg-type pyright=reportArgumentType
    self.resume_in("5")
    self.resume_in(5)


@continuable
def children(self: ContinuableTask) -> None:
    # wrong: mypy-=assert-type pyright-=reportAssertTypeFailure
    assert_type(self.wait_for_results("one", text_of.s(1)), str)
    # wrong: mypy-=assert-type pyright-=reportAssertTypeFailure
    assert_type(self.wait_for_results("list", [text_of.s(1), text_of.s(2)]), list[str])
    # wrong: mypy-=assert-type pyright-=reportAssertTypeFailure
    assert_type(self.wait_for_results("generator", (text_of.s(n) for n in range(3))), list[str])
    # wrong: mypy-=assert-type pyright-=reportAssertTypeFailure,reportFunctionMemberAccess
    assert_type(self.wait_for_results("shared", double.s(1)), int)
    # wrong: mypy-=assert-type pyright-=reportFunctionMemberAccess
    assert_type(self.wait_for_results("group", group(double.s(1), double.s(2))), list[Any])
    # wrong: pyright-=reportAssertTypeFailure,reportFunctionMemberAccess
    assert_type(self.wait_for_results("chain", chain(double.s(1), double.s())), Any)
    # wrong: mypy+=call-overload pyright+=reportArgumentType,reportCallIssue
    self.wait_for_results("number", 3)
    # wrong: mypy+=attr-defined pyright=reportAttributeAccessIssue
    self.wait_for_result("one", text_of.s(1))
