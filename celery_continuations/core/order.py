"""The order of steps: each step once, and in every execution the same steps in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_continuations.core.evolution import misfit
from celery_continuations.core.iteration import Iteration
from celery_continuations.core.step import Step
from celery_continuations.exceptions import InvalidStepError

__all__ = ["Order", "check_name", "nested_steps"]


def check_name(name: Any) -> None:
    """Refuse an invalid step name."""
    if type(name) is not str or not name:
        raise InvalidStepError(
            f"a step's name must be a non-empty str, not {name!r}; it is the first argument", found=name
        )


def nested_steps(name: str, kind: str, current: str, current_kind: str) -> InvalidStepError:
    """Return the error for a step within another one."""
    advice = ""
    if current_kind == "loop":
        advice = (
            f"; write one loop, self.iterate({current!r}, nested(outer, inner))"
            if kind == "loop"
            else "; call functions in its body directly"
        )
    return InvalidStepError(
        f"step {name!r} was started inside step {current!r}; steps cannot be nested{advice} (if the loop over "
        f"{current!r} was left while its iterator is kept in a variable, close it)",
        found=name,
        expected=current,
    )


class Order:
    """The steps that a task has declared in this execution, and those that an earlier one recorded.

    Args:
        recorded: names of the steps in the snapshot, in order.
    """

    __slots__ = ("_declared", "_recorded", "_seen")

    def __init__(self, recorded: Sequence[str]) -> None:
        self._recorded = recorded
        self._seen: set[str] = set()
        self._declared: Step | None = None

    @property
    def place(self) -> int:
        """How many steps have been declared."""
        return len(self._seen)

    def declare(self, step: Step) -> InvalidStepError | None:
        """Declare the next step; return the misfit if an earlier execution had another step here.

        Raises:
            InvalidStepError: when the task has already declared a step of this name.
        """
        name, place = step.name, len(self._seen)
        if name in self._seen:
            raise InvalidStepError(
                f"step {name!r} was started twice; each step needs a unique name (to do the same for each of many "
                f"items, write `for item in self.iterate({name!r}, items):`)",
                found=name,
            )
        if place < len(self._recorded) and self._recorded[place] != name:
            expected = self._recorded[place]
            return misfit(
                f"step {name!r} was started where an earlier execution had step {expected!r}; the order of "
                "steps may depend on the arguments and on remembered values only",
                found=name,
                expected=expected,
            )
        self._seen.add(name)
        self._declared = step
        return None

    def enter(self, step: Step) -> None:
        """Begin the step that was declared last.  Raises InvalidStepError for any other step."""
        if self._declared is not step:
            raise InvalidStepError(
                f"step {step.name!r} is iterated a second time, or after the task continued", found=step.name
            )
        self._declared = None

    def refuse_unused(self) -> None:
        """Refuse a declared step that was never begun."""
        unused = self._declared
        if isinstance(unused, Iteration):
            raise InvalidStepError(
                f"step {unused.name!r} was declared, but nothing iterated over it; write {unused.usage}",
                found=unused.name,
            )
        if unused is not None:
            raise InvalidStepError(
                f"step {unused.name!r} was neither iterated nor given a function; write {unused.usage} or "
                f"`self.step({unused.name!r}, function)`",
                found=unused.name,
            )

    def missed(self) -> InvalidStepError | None:
        """Return the misfit if the task has ended without reaching every recorded step."""
        if len(self._seen) >= len(self._recorded):
            return None
        name = self._recorded[len(self._seen)]
        return misfit(
            f"the task ended before step {name!r}, which an earlier execution had reached; "
            "the order of steps may depend on the arguments and on remembered values only",
            expected=name,
        )
