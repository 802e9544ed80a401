"""Steps: what they return, and their cursors."""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

from celery_continuations import ContinuableTask, continuable
from celery_continuations.core.continuation import Continuation
from celery_continuations.core.snapshot import Saved
from celery_continuations.core.step import Step


def validate(path: str, strict: bool = False) -> int:
    return len(path)


def no_value() -> None: ...


@continuable
def calls(self: ContinuableTask, path: str) -> None:
    assert_type(self.step("validate", validate, path), int)
    assert_type(self.step("strictly", validate, path, strict=True), int)
    assert_type(self.step("lambda", lambda: [path]), list[str])
    self.step("nothing", no_value)
    # wrong: mypy=call-overload pyright=reportArgumentType
    self.step("wrong argument", validate, 3)
    # wrong: mypy=call-arg pyright=reportCallIssue
    self.step("misspelt argument", validate, path, stritc=True)
    # wrong: mypy=call-overload pyright=reportCallIssue
    self.step("missing argument", validate)
    # wrong: mypy+=attr-defined pyright=reportAttributeAccessIssue
    self.stpe("misspelt", validate, path)
    # wrong: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    self.step(validate, path)


@continuable
def blocks(self: ContinuableTask, first: int | None) -> None:
    for step in self.step("count", start=0):
        assert_type(step, Step[int])
        assert_type(step.cursor, int)
        step.set(step.cursor + 1)
        step.advance()
        step.advance(from_=3)
        # wrong: mypy=arg-type pyright=reportArgumentType
        step.set("three")
        # wrong: mypy=attr-defined pyright=reportAttributeAccessIssue
        step.advnace()
    for place in self.step("place", start=("a", 1)):
        assert_type(place.cursor, tuple[str, int])
        place.set(("b", 2))
    block: Step[tuple[int, int, int]] = self.step("three", start=(0, 0, 0))
    for three in block:
        assert_type(three.cursor, tuple[int, int, int])
        three.set((1, 2, 3))
    for literal in self.step("literals", start=(0, 0, 0)):
        # wrong: pyright=reportArgumentType
        literal.set((1, 2, 3))
    for anything in self.step("anything"):
        assert_type(anything.cursor, Any)
        anything.set("three")
    for none in self.step("none", start=None, isolated=True):
        assert_type(none.cursor, Any)
    for perhaps in self.step("perhaps", start=first):
        # wrong: mypy=assert-type
        assert_type(perhaps.cursor, int | None)
    # wrong: mypy=call-overload pyright=reportCallIssue
    self.step("misspelt", strat=0)
    # wrong: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    self.step("wrong", start=0, isolated="yes")


@continuable
def state(self: ContinuableTask) -> None:
    assert_type(self.saved, Saved)
    self.saved["rows"] = 3
    assert_type(self.saved["rows"], Any)
    assert_type(self.continuation, Continuation)
    assert_type(self.continuation.key, str)
    assert_type(self.continuation.completed, tuple[str, ...])
    assert_type(self.callback_url("payment", expires=3600), str)
    # wrong: mypy=attr-defined pyright=reportAttributeAccessIssue
    self.continuation.resumption
    # wrong: mypy=call-arg pyright=reportCallIssue
    self.checkpoint(3)
    # wrong: mypy+=attr-defined pyright=reportAttributeAccessIssue
    self.savde["rows"] = 3
