"""assert_resumable shows that new code resumes what old code has begun."""

from __future__ import annotations

from typing import Any

import pytest

from celery_continuations.testing import assert_resumable, delivered

USERS = ["ann", "bob", "eve"]


class World:
    def __init__(self) -> None:
        self.table: dict[str, Any] = {}


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def prove(task: Any, world: World) -> Any:
    def prove(old: Any, new: Any, *args: Any, settings: Any = None, **options: Any) -> None:
        assert_resumable(
            task(new, **(settings or {})),
            *args,
            upgrade_from=task(old),
            check=lambda: dict(world.table),
            setup=world.table.clear,
            **options,
        )

    return prove


@pytest.fixture
def old(world: World) -> Any:
    def old(self: Any, users: list[str]) -> str:
        self.step("validate", world.table.__setitem__, "valid", True)
        for user in self.iterate("load", users):
            world.table[user] = len(user)
        self.step("report", world.table.__setitem__, "report", len(users))
        return "old"

    return old


def test_the_same_steps_resume(prove: Any, old: Any, world: World) -> None:
    def new(self: Any, users: list[str], note: str = "") -> str:
        self.step("validate", world.table.__setitem__, "valid", True)
        for user in self.iterate("load", users):
            world.table.update({user: len(user)})
        self.step("report", world.table.__setitem__, "report", len(users))
        return "new"

    prove(old, new, USERS)


def renamed(world: World) -> Any:
    def new(self: Any, users: list[str]) -> str:
        for user in self.iterate("import", users):
            world.table[user] = len(user)
        self.step("summary", world.table.__setitem__, "report", len(users))
        world.table["valid"] = True
        return "new"

    return new


def test_renamed_and_removed_steps_resume(prove: Any, old: Any, world: World) -> None:
    names = {"load": "import", "report": "summary", "validate": None}
    prove(old, renamed(world), USERS, settings={"continuation_renamed_steps": names})


def test_names_that_are_not_told_are_found_out(prove: Any, old: Any, world: World) -> None:
    with pytest.raises(AssertionError, match=r"does not resume what task\d+ has begun: .*\n  it raises InvalidStep.*"):
        prove(old, renamed(world), USERS, settings={"continuation_renamed_steps": {"load": "import"}})


def versioned(world: World) -> Any:
    def new(self: Any, users: list[str]) -> str:
        self.step("validate", world.table.__setitem__, "valid", True)
        if self.continuation.version >= 2:
            self.step("first", world.table.__setitem__, "first", True)
        for user in self.iterate("load", users):
            world.table[user] = len(user)
        self.step("report", world.table.__setitem__, "report", len(users))
        if self.continuation.version < 2:
            self.step("first", world.table.__setitem__, "first", True)
        return "new"

    return new


def test_a_step_that_is_inserted_for_a_new_version_alone(prove: Any, old: Any, world: World) -> None:
    prove(old, versioned(world), USERS, settings={"continuation_version": 2})


def test_without_a_version_an_inserted_step_is_found_out(prove: Any, old: Any, world: World) -> None:
    def new(self: Any, users: list[str]) -> str:
        self.step("validate", world.table.__setitem__, "valid", True)
        self.step("first", world.table.__setitem__, "first", True)
        return "new"

    with pytest.raises(AssertionError, match="step 'first' was started where an earlier execution had step 'load'"):
        prove(old, new, USERS)


def test_an_outcome_that_changes_on_purpose(prove: Any, old: Any, world: World) -> None:
    def new(self: Any, users: list[str]) -> str:
        self.step("validate", world.table.__setitem__, "valid", True)
        for user in self.iterate("load", users):
            world.table[user] = len(user)
        self.step("report", world.table.__setitem__, "report", "many")
        return "new"

    with pytest.raises(AssertionError, match=r"check\(\)\['report'\]: expected 'many', found 3"):
        prove(old, new, USERS)


def test_an_expected_outcome(task: Any, world: World) -> None:
    def old(self: Any) -> None:
        self.step("kind", world.table.__setitem__, "kind", "old")
        for number in self.iterate("numbers", range(3)):
            world.table[str(number)] = "done"

    def new(self: Any) -> None:
        self.step("kind", world.table.__setitem__, "kind", "new")
        for number in self.iterate("numbers", range(3)):
            world.table[str(number)] = "done"
        world.table["kind"] = "either"

    done = {**dict.fromkeys("012", "done"), "kind": "either"}
    options: Any = {"check": lambda: dict(world.table), "setup": world.table.clear, "upgrade_from": task(old)}
    assert_resumable(task(new), expected=done, **options)
    with pytest.raises(AssertionError, match="upgrade_from=..., expected=...") as caught:
        assert_resumable(task(new), expected={**done, "kind": "new"}, **options)
    assert "check()['kind']: expected 'new', found 'either'" in str(caught.value)


def test_a_wait_that_is_renamed_takes_what_comes_under_either_name(prove: Any, world: World) -> None:
    def old(self: Any) -> None:
        world.table["by"] = self.wait_for("approval")
        self.step("end", world.table.__setitem__, "end", True)

    def new(self: Any) -> None:
        world.table["by"] = self.wait_for("consent")
        self.step("end", world.table.__setitem__, "end", True)

    with delivered(approval="ann", consent="ann"):
        prove(old, new, settings={"continuation_renamed_steps": {"approval": "consent"}})


def test_what_is_missing_is_refused(task: Any, world: World) -> None:
    def code(self: Any) -> int:
        for _ in self.iterate("numbers", range(3)):
            pass
        return 3

    with pytest.raises(ValueError, match="needs check="):
        assert_resumable(task(code), upgrade_from=task(code))
    with pytest.raises(ValueError, match="goes with upgrade_from="):
        assert_resumable(task(code), expected=1)
