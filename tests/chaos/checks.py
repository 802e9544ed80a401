"""The checks that a trace must pass, whatever was done to the workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

#: Seconds within which a superseded execution notices, once nothing hinders it: a few ticks of its clock, and the rest
#: after a save that failed.
NOTICES = 0.2

# Seconds by which a save may be late, on a busy machine.
_SLACK = 0.2

_DONE = ("first", "item", "page", "last")


def value_of(number: int, items: int, pages: int) -> int:
    """Return what a task returns."""
    return number * 10_000 + items * 100 + pages


@dataclass(frozen=True)
class Sent:
    """A task that was sent.

    Attributes:
        linked: whether it has a link.
        chord: the id of the chord's body that it is in the header of, or "".
        after: the id of the task that comes before it in a chain, or "".
        limit: its soft time limit in seconds, or None.
    """

    id: str
    number: int
    items: int
    pages: int
    isolated: bool = False
    linked: bool = False
    chord: str = ""
    after: str = ""
    limit: float | None = None

    @property
    def value(self) -> int:
        return value_of(self.number, self.items, self.pages)

    @property
    def needed(self) -> list[tuple[str, ...]]:
        """Return the work that the task has to do."""
        items = [("item", str(n)) for n in range(self.items)]
        return [("first",), *items, *(("page", str(n)) for n in range(self.pages)), ("last",)]


@dataclass
class Line:
    """A line of the trace."""

    at: float
    group: int
    pid: int
    task: str
    generation: int
    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Line:
        at, group, pid, task, generation, *words = text.split()
        return cls(float(at), int(group), int(pid), task, int(generation), tuple(words))


@dataclass
class Execution:
    """The work of one execution of a task."""

    generation: int
    group: int
    pid: int
    began: float
    done: list[Line] = field(default_factory=list)
    left: float | None = None
    ended: bool = False


@dataclass
class Faults:
    """The faults of a run and their times, from time.monotonic.

    Attributes:
        counts: how often, by kind.
        kills: of processes.
        freezes: from when to when, by process group.
        store_away: from when to when.
        machine_late: from when to when processes did not get the processor in time.
    """

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    kills: int = 0
    freezes: dict[int, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    store_away: list[tuple[float, float]] = field(default_factory=list)
    machine_late: list[tuple[float, float]] = field(default_factory=list)

    @property
    def losses(self) -> int:
        """The number of times that executions were lost, or taken for lost: their last words are repeated."""
        return self.kills + sum(map(len, self.freezes.values()))

    def noticed_by(self, moment: float) -> float:
        """Return when an execution that was superseded by ``moment`` must have noticed it.

        It asks the store, so it can't notice while the store is unavailable.
        """
        for began, ended in sorted(self.store_away + self.machine_late):
            if began <= moment + NOTICES:
                moment = max(moment, ended)
        return moment + NOTICES


@dataclass
class Verdict:
    """The counts of a run, and the problems found.

    Attributes:
        lost: executions that were killed, or superseded while they were frozen.
        recovery: the longest time from the last work of such an execution to the start of the next one.
        oldest: the age of the oldest repeated work at that time.
        limited: tasks that their soft time limit has ended.
    """

    tasks: int = 0
    executions: int = 0
    lost: int = 0
    needed: int = 0
    done: int = 0
    recovery: float = 0.0
    oldest: float = 0.0
    limited: int = 0
    wrong: list[tuple[str, str]] = field(default_factory=list)

    @property
    def repeated(self) -> int:
        return self.done - self.needed


class Checker:
    """Checks one run.

    Args:
        lines: of the trace.
        faults: the faults of the run.
        interval: ``continuation_checkpoint_interval``.
    """

    def __init__(self, lines: list[Line], faults: Faults, interval: float) -> None:
        self._faults = faults
        self._window = interval + _SLACK
        self._by_task: dict[str, list[Line]] = defaultdict(list)
        self._called: dict[int, set[str]] = defaultdict(set)
        for line in sorted(lines, key=lambda one: one.at):
            self._by_task[line.task].append(line)
            if line.words[0] == "called":
                self._called[int(line.words[1])].add(line.task)
        self.verdict = Verdict()

    def trace_of(self, task: str) -> str:
        return "\n".join(
            f"    {one.at:.3f} group {one.group} pid {one.pid} generation {one.generation}: {' '.join(one.words)}"
            for one in self._by_task[task]
        )

    def check(self, sent: Sent, state: str, result: object, callbacks_can_be_lost: bool) -> None:
        """Check a task that was sent, given its state and result in the backend."""
        verdict = self.verdict
        verdict.tasks += 1
        executions = self._executions(sent.id)
        verdict.executions += len(executions)
        if sent.limit is not None and state == "FAILURE":
            problems = [*self._limited(sent, result), *self._generations(executions)]
        else:
            problems = [
                *self._result(sent, state, result),
                *self._missing(sent, executions),
                *self._generations(executions),
                *self._callbacks(sent, callbacks_can_be_lost),
            ]
        for number, execution in enumerate(executions):
            if number + 1 < len(executions):
                problems += self._succeeded(execution, executions[number + 1 :])
        verdict.wrong += [(sent.id, problem) for problem in problems]

    def interruptions(self, task: str) -> int:
        """Return how often a task has left its worker by itself."""
        return sum(line.words[0] == "left" for line in self._by_task[task])

    def check_body(self, body: str, header: list[Sent], state: str, can_be_lost: bool) -> None:
        """Check a chord's body."""
        times = [line for line in self._by_task[body] if line.words[0] == "total"]
        expected = sorted(one.value for one in header)
        if (state != "SUCCESS" or not times) and not can_be_lost:
            self.verdict.wrong.append((body, f"a chord's body: {state}, ran {len(times)} times"))
        for line in times:
            if sorted(map(int, line.words[1].strip("[]").split(","))) != expected:
                self.verdict.wrong.append((body, f"a chord's body got {line.words[1]}, not {expected}"))
        if len(times) > 1 + self._faults.losses:
            self.verdict.wrong.append((body, f"a chord's body ran {len(times)} times"))

    def _executions(self, task: str) -> list[Execution]:
        found: list[Execution] = []
        for line in self._by_task[task]:
            word = line.words[0]
            if word == "begin":
                found.append(Execution(line.generation, line.group, line.pid, line.at))
                continue
            own = next((one for one in reversed(found) if _is_of(line, one)), None)
            if own is None:
                continue
            if word == "left":
                own.left = line.at
            elif word == "end":
                own.ended = True
            elif word in _DONE:
                own.done.append(line)
        return sorted(found, key=lambda one: (one.generation, one.began))

    def _result(self, sent: Sent, state: str, result: object) -> Iterator[str]:
        if state != "SUCCESS":
            yield f"its state is {state}"
        elif result != sent.value:
            yield f"it returned {result!r} and not {sent.value}"
        for line in self._failures(sent):
            yield f"failed meanwhile: {line.words[1]}"

    def _failures(self, sent: Sent) -> list[Line]:
        """Return the failures that were stored, but for a limit that was met while the store was unavailable."""
        found = [line for line in self._by_task[sent.id] if line.words[0] == "failure"]
        return [line for line in found if sent.limit is None or not self._away(line.at - 1, line.at + 1)]

    def _missing(self, sent: Sent, executions: list[Execution]) -> Iterator[str]:
        done = [line.words for one in executions for line in one.done]
        missing = set(sent.needed) - set(done)
        self.verdict.needed += len(sent.needed)
        self.verdict.done += len(done)
        if missing:
            yield f"was not done: {sorted(missing)}"

    def _limited(self, sent: Sent, result: object) -> Iterator[str]:
        """Check a task that its soft time limit has ended: that is its one outcome."""
        self.verdict.limited += 1
        if type(result).__name__ != "SoftTimeLimitExceeded":
            yield f"it failed with {result!r}"
        if self._called[sent.number]:
            yield "it failed, and its link was called"
        for failure in self._failures(sent):
            if any(line.words[0] == "begin" and line.at > failure.at for line in self._by_task[sent.id]):
                yield "an execution began after its failure was stored"

    def _generations(self, executions: list[Execution]) -> Iterator[str]:
        generations = [one.generation for one in executions]
        if len(set(generations)) < len(generations):
            yield f"two executions have the same generation: {generations}"

    def _callbacks(self, sent: Sent, can_be_lost: bool) -> Iterator[str]:
        count = len(self._called[sent.number])
        if sent.linked and not count and not can_be_lost:
            yield "its link was not called"
        if count > (1 + self._faults.losses if sent.linked else 0):
            yield f"its link was called {count} times"

    def _succeeded(self, execution: Execution, later: list[Execution]) -> Iterator[str]:
        """Check an execution that was followed by another."""
        over = later[0].began
        before = [line for line in execution.done if line.at <= over]
        if execution.left is None:
            self.verdict.lost += 1
            last = before[-1].at if before else execution.began
            self.verdict.recovery = max(self.verdict.recovery, over - last)
        yield from self._worked_on(execution, over)
        if not before:
            return
        again = {line.words for one in later for line in one.done}
        repeated = [line for line in before if line.words in again]
        allowed = self._allowed(execution, before)
        last = self._last(execution, before)
        for line in repeated:
            what = " ".join(line.words)
            # The last item may not have reached its checkpoint, unless the execution was interrupted.
            is_last = line is before[-1] and execution.left is None
            if execution.left is None:
                self.verdict.oldest = max(self.verdict.oldest, last - line.at)
            if line.at < allowed and not is_last:
                yield (
                    f"generation {execution.generation} had done {what!r} {last - line.at:.2f} s "
                    f"before it was lost or left, and it was done again"
                )
            elif line.words[0] in ("first", "last") and not is_last and not self._away(line.at - 1, line.at + 1):
                yield f"step {what!r} was complete in generation {execution.generation}, and ran again"

    def _allowed(self, execution: Execution, done: list[Line]) -> float:
        """Return the time after which work may not have been saved."""
        last = self._last(execution, done)
        if execution.left is not None and not self._away(execution.left - 1, execution.left):
            return last + 1
        allowed = last - self._window
        for began, ended in sorted(self._faults.store_away, reverse=True):
            if ended + self._window >= allowed and began <= last:
                allowed = min(allowed, began - self._window)
        return allowed

    def _last(self, execution: Execution, done: list[Line]) -> float:
        """Return the time of its last work, except for work after it was thawed and had been superseded."""
        for froze, thawed in self._faults.freezes[execution.group]:
            before = [line for line in done if line.at <= froze]
            after = [line for line in done if line.at > froze]
            if before and after and (len(after) == 1 or after[-1].at <= self._faults.noticed_by(thawed)):
                return before[-1].at
        return done[-1].at

    def _worked_on(self, execution: Execution, over: float) -> Iterator[str]:
        thawed = [at for _, at in self._faults.freezes[execution.group] if at >= over - NOTICES]
        late = [line for line in execution.done if line.at > over]
        allowed = [(start, self._faults.noticed_by(start)) for start in (over, *thawed)]
        unnoticed = [line for line in late if not any(start <= line.at <= end for start, end in allowed)]
        if len(unnoticed) > 1:  # the current item
            yield (
                f"generation {execution.generation} did {len(unnoticed)} things after the next one had begun, "
                f"the last {unnoticed[-1].at - over:.2f} s after"
            )

    def _away(self, start: float, end: float) -> bool:
        return any(began <= end and start <= ended for began, ended in self._faults.store_away)


def _is_of(line: Line, execution: Execution) -> bool:
    if line.generation < 0:
        return line.pid == execution.pid
    return line.generation == execution.generation and line.pid == execution.pid
