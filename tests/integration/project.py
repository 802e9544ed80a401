"""The project that the tests' workers run."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from billiard import current_process
from celery import Celery
from celery.backends.base import Backend
from celery.backends.redis import RedisBackend
from celery.canvas import maybe_signature
from celery.concurrency import asynpool
from celery.exceptions import Ignore, Reject
from celery.signals import before_task_publish, task_failure, task_postrun
from kombu import Exchange, Queue

from celery_continuations import AppTask, ContinuableTask, ContinuationError
from celery_continuations.execution import (
    claiming,
    message,
)
from celery_continuations.protocol import commands, owned, recovery
from celery_continuations.waits import RAISE
from celery_continuations.worker import sweeper

app = Celery("project", set_as_current=True)
app.conf.update(json.loads(os.environ.get("TEST_CONF", "{}")))
if topic := app.conf.get("test_topic"):
    app.conf.task_queues = [
        Queue(app.conf.task_default_queue),
        Queue(f"{topic}.q", Exchange(topic, type="topic"), routing_key="rows.#"),
        Queue(f"{topic}.priorities", max_priority=9),
    ]


if app.conf.get("test_slow_publish"):

    @before_task_publish.connect
    def slow(**kwargs: Any) -> None:
        """A slow broker: a second signal arrives while the message is published."""
        trace("publishing")
        time.sleep(app.conf.test_slow_publish)


if app.conf.get("test_late_accept"):

    class LateToAccept(asynpool.Worker):  # type: ignore[misc]
        """A busy machine: a pool process tells the main process late that it has accepted a task, the second later."""

        def on_loop_start(self, pid: int) -> None:
            super().on_loop_start(pid)
            wait_for_job = self.wait_for_job

            def wait_longer() -> Any:
                request = wait_for_job()
                if request is not None:
                    trace("accepting")
                    time.sleep(app.conf.test_late_accept * (1 + current_process().index))
                return request

            self.wait_for_job = wait_longer

    asynpool.AsynPool.Worker = LateToAccept


def trace(*words: Any) -> None:
    with open(os.environ["TEST_TRACE"], "a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def always(task: Any) -> str:
    return "again"


def work(task: Any, count: int, delay: float = 0.03) -> int:
    trace("run", task.request.id, os.getpid(), task.request.retries)
    for row in task.iterate("rows", range(count)):
        time.sleep(delay)
        trace("item", row, os.getpid())
    return count


@app.task(base=ContinuableTask, bind=True, name="project.rows")
def rows(self: Any, count: int, delay: float = 0.03) -> int:
    """Work through rows, one at a time."""
    return work(self, count, delay)


@app.task(base=ContinuableTask, bind=True, name="project.table")
def table(self: Any, table: list[Any]) -> list[Any]:
    """Remove the header from the rows, as a function may do with its own list."""
    header = table.pop(0)
    trace("run", header)
    for row in self.iterate("rows", table):
        time.sleep(0.03)
        trace("item", row, os.getpid())
    return [header, len(table)]


@app.task(base=ContinuableTask, bind=True, name="project.early", acks_late=False)
def early(self: Any, count: int) -> int:
    """The same as rows, acknowledged before it runs."""
    return work(self, count)


@app.task(base=ContinuableTask, bind=True, name="project.stuttering", continuation_should_interrupt=always)
def stuttering(self: Any, value: Any, fail: bool = False) -> Any:
    """Stop after each of three items."""
    for row in self.iterate("rows", range(3)):
        trace("item", row, os.getpid())
    trace("retries", self.request.retries)
    if fail:
        raise ContinuationError("failed in the end")
    return value


@app.task(base=ContinuableTask, bind=True, name="project.gated")
def gated(self: Any, count: int, gate: int) -> int:
    """Work through rows, and at one of them wait for the test to open the gate; it can be interrupted there."""
    for row in self.iterate("rows", range(count)):
        while row == gate and not Path(os.environ["TEST_TRACE"]).with_name("gate").exists():
            self.checkpoint()
            time.sleep(0.01)
        trace("item", row, os.getpid())
    return count


@app.task(base=ContinuableTask, bind=True, name="project.witness", continuation_should_interrupt=always)
def witness(self: Any, *args: Any, **kwargs: Any) -> str:
    """Record the whole request of two executions."""
    seen = {key: value for key, value in vars(self.request).items() if not key.startswith("_")}
    trace("request", json.dumps(seen, default=repr))
    for _ in self.iterate("rows", range(1)):
        pass
    return "seen"


@app.task(base=ContinuableTask, bind=True, name="project.big")
def big(self: Any, size: int) -> int:
    """Carry a big snapshot over an interruption."""
    self.saved["ballast"] = "x" * size
    for _ in self.step("alone", isolated=True):
        pass
    for _ in self.step("after"):
        pass
    return len(self.saved["ballast"])


@app.task(base=ContinuableTask, bind=True, name="project.quick")
def quick(self: Any, value: Any) -> Any:
    return self.step("quick", lambda: value)


@app.task(name="project.plain")
def plain(value: Any) -> Any:
    return value


@app.task(base=AppTask, bind=True, name="project.late_claim")
def late_claim(self: Any, count: int) -> int:
    """A task of an app's own class that claims at its first step."""
    return work(self, count)


@app.task(name="project.called")
def called(*args: Any) -> Any:
    """A callback: records its call."""
    trace("called", json.dumps(args, default=repr))
    return args[0]


@app.task(name="project.total")
def total(values: Any) -> Any:
    """A chord's body."""
    trace("total", json.dumps(values))
    return sum(values)


@app.task(name="project.failed")
def failed(request: Any, error: Any, traceback: Any) -> None:
    """An errback."""
    trace("failed", request.id, type(error).__name__)


# -- for test_faults.py


@app.task(base=ContinuableTask, bind=True, name="project.steps")
def steps(self: Any, count: int, delay: float = 0.03) -> int:
    """A step of each kind."""
    trace("run", self.request.id, os.getpid(), self.request.retries)
    self.step("first", trace, "step", "first")
    for row in self.iterate("rows", range(count)):
        time.sleep(delay)
        trace("item", row, os.getpid())
    for step in self.step("pages", start=0):
        while step.cursor < 3:
            trace("page", step.cursor)
            step.advance()
    self.step("last", trace, "step", "last")
    return count


@app.task(base=ContinuableTask, bind=True, name="project.dying")
def dying(self: Any, count: int, at: int | None = None) -> int:
    """Kill this process whenever it reaches one item, or before its first step."""
    trace("run", self.request.id, os.getpid(), self.request.retries)
    if at is None:
        use_too_much_memory()
    for row in self.iterate("rows", range(count)):
        if row == at:
            use_too_much_memory()
        trace("item", row, os.getpid())
    return count


@app.task(base=ContinuableTask, bind=True, name="project.later", max_retries=5)
def later(self: Any, countdown: float) -> None:
    """Retries itself after an item."""
    trace("run", self.request.id, os.getpid(), self.request.retries)
    for row in self.iterate("rows", range(2)):
        trace("item", row, os.getpid())
        if row == 1:
            raise self.retry(countdown=countdown)


# -- for test_waiting.py


def trace_run(task: Any) -> None:
    trace("run", task.request.id, os.getpid(), task.request.retries)


@app.task(base=ContinuableTask, bind=True, name="project.asking")
def asking(self: Any, names: list[str], timeout: float | None = None, default: Any = RAISE) -> Any:
    """Wait for each of these names."""
    trace_run(self)
    return [self.wait_for(name, timeout=timeout, default=default) for name in names]


@app.task(base=ContinuableTask, bind=True, name="project.asking_one")
def asking_one(self: Any, name: str = "approval", timeout: float | None = None, default: Any = RAISE) -> Any:
    """Wait for one name; a step before and one after."""
    trace_run(self)
    self.step("before", trace, "before", self.request.id)
    answer = self.wait_for(name, timeout=timeout, default=default)
    trace("reached", self.request.id, time.time())
    self.step("after", trace, "after", self.request.id)
    return answer


@app.task(base=ContinuableTask, bind=True, name="project.asking_late")
def asking_late(self: Any, gate: str) -> Any:
    """Begin, and wait for a name once a file exists."""
    trace_run(self)
    while not os.path.exists(gate):
        time.sleep(0.01)
    return self.wait_for("approval")


@app.task(base=ContinuableTask, bind=True, name="project.napping")
def napping(self: Any, seconds: float) -> float:
    """Sleep; return for how long."""
    trace_run(self)
    began = self.step("began", time.time)
    self.sleep("nap", seconds)
    return time.time() - float(began)


@app.task(base=ContinuableTask, bind=True, name="project.polling")
def polling(self: Any, path: str, timeout: float | None = None) -> Any:
    """Wait until a file exists, by polling."""
    trace_run(self)
    return self.wait_until("file", lambda: os.path.exists(path) and "there", every=0.2, timeout=timeout)


@app.task(base=ContinuableTask, bind=True, name="project.waits")
def waits(self: Any) -> str:
    """Sleep, poll, wait for a delivery, and come back to the same cursor."""
    self.sleep("nap", 0.1)
    polls = self.saved["polls"] = self.saved.get("polls", 0)

    def poll() -> bool:
        self.saved["polls"] += 1
        return bool(polls)

    self.wait_until("poll", poll, every=0.1)
    for step in self.step("pause"):
        if not self.saved.get("paused"):
            self.saved["paused"] = True
            self.resume_in(0.1)
        step.checkpoint()
    return str(self.wait_for("answer", timeout=0.1, default="none"))


@app.task(base=ContinuableTask, bind=True, name="project.coming_back")
def coming_back(self: Any) -> int:
    """Stop in the middle of a step, and resume at the same cursor."""
    trace_run(self)
    for page in self.step("pages", start=0):
        while page.cursor < 4:
            trace("page", self.request.id, page.cursor)
            if page.cursor == 2 and not page.resumed:
                self.resume_in(0.3)
            page.advance()
    return 4


@app.task(base=ContinuableTask, bind=True, name="project.gathering")
def gathering(self: Any, children: list[Any]) -> Any:
    """Wait for the results of other tasks, given as name and arguments."""
    trace_run(self)
    return self.wait_for_results("children", [app.signature(f"project.{name}", args) for name, *args in children])


@app.task(base=ContinuableTask, bind=True, name="project.gathering_canvas")
def gathering_canvas(self: Any, canvas: Any) -> Any:
    """Wait for the result of a chain or chord."""
    trace_run(self)
    return self.wait_for_results("canvas", maybe_signature(canvas, app=app))


@app.task(name="project.ignoring", ignore_result=True)
def ignoring(how: str) -> str:
    """End in a way that stores no result."""
    if how == "returns":
        return how
    raise {"ignores": Ignore, "rejects": Reject}[how]()


@app.task(name="project.failing")
def failing(text: str) -> None:
    """Fail."""
    raise ValueError(text)


@app.task(base=ContinuableTask, bind=True, name="project.mended")
def mended(self: Any, path: str) -> str:
    """Fail until a file exists."""
    trace_run(self)
    self.step("before", trace, "before", self.request.id)
    self.step("mended", lambda: os.stat(path).st_size)
    return "mended"


def use_too_much_memory() -> None:
    """Have the kernel kill this process if the test could set a memory limit; otherwise kill it directly."""
    limited = app.conf.get("test_memory_group")
    if limited:
        with open(limited, "w") as file:
            file.write(str(os.getpid()))
        ballast = []
        while True:
            ballast.append(os.urandom(1 << 20))
    os.kill(os.getpid(), signal.SIGKILL)


@task_failure.connect
def on_task_failure(task_id: str = "", **kwargs: Any) -> None:
    trace("failure", task_id)


@task_postrun.connect
def on_task_postrun(task_id: str = "", **kwargs: Any) -> None:
    trace("over", task_id, os.getpid())


def reach(point: str) -> None:
    """Note that an execution has reached a point; the first time, do what the test has chosen for it."""
    chosen, deed = app.conf.get("test_point") or (None, None)
    mark = f"{os.environ['TEST_TRACE']}.{point}"
    if point != chosen or os.path.exists(mark):
        return
    trace("point", point, os.getpid())
    Path(mark).touch()
    if deed == "wait":
        while not os.path.exists(mark + ".go"):
            time.sleep(0.01)
    elif deed == "parent":
        os.kill(os.getppid(), signal.SIGKILL)  # its children end with it
        signal.pause()
    elif deed == "exit":
        raise SystemExit("as on a SIGTERM")
    elif deed == "child":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        os.killpg(os.getpgrp(), signal.SIGKILL)


def points(owner: Any, name: str, before: str | None = None, after: str | None = None) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        reach(before or "")
        value = original(*args, **kwargs)
        reach(after or "")
        return value

    setattr(owner, name, wrapped)


if app.conf.get("test_point"):
    points(claiming, "claim", after="claimed")
    points(message, "republish", "saved", "published")
    points(owned.OwnedRecord, "finish", after="finishing")
    points(owned.OwnedRecord, "wait", "leaving", "left")
    points(Backend, "mark_as_done", "dispatched", "stored")
    points(RedisBackend, "on_chord_part_return", "uncounted")
    points(RedisBackend, "_unpack_chord_result", "unpublished")


if app.conf.get("test_overdue_after"):
    for module in (owned, recovery, commands, sweeper):
        module.OVERDUE_AFTER = app.conf.test_overdue_after


# -- for test_transactions.py


@app.task(base=ContinuableTask, bind=True, name="project.effects")
def effects(self: Any, url: str, count: int) -> int:
    """Write each row to a database, together with the cursor."""
    from tests.integration.effects import BySession

    way = BySession(url)
    for row in self.iterate("rows", range(count), transaction=way.transaction):
        time.sleep(0.01)
        way.add(row)
        trace("item", row, os.getpid())
    return count


@app.task(base=ContinuableTask, bind=True, name="project.listed", autoretry_for=(Exception,), max_retries=5)
def listed(self: Any) -> int:
    """Work through a list that the test may change between two executions."""
    table = json.loads(Path(os.environ["TEST_TRACE"]).with_name("rows.json").read_text())
    for row in self.iterate("rows", table):
        time.sleep(0.03)
        trace("item", row["id"], os.getpid())
    return len(table)


# One task in the versions of two deploys, and another that the later deploy has renamed.
if os.environ.get("TEST_CODE", "old") == "old":

    @app.task(base=ContinuableTask, bind=True, name="project.deployed")
    def deployed(self: Any, count: int) -> str:
        """Load, and report."""
        for row in self.iterate("load", range(count)):
            time.sleep(0.03)
            trace("item", f"{self.request.id}:{row}")
        self.step("report", trace, "report", self.request.id)
        return "old"

    @app.task(base=ContinuableTask, bind=True, name="project.old_name")
    def named(self: Any, count: int) -> int:
        """The same as rows."""
        return work(self, count)

else:

    @app.task(
        base=ContinuableTask,
        bind=True,
        name="project.deployed",
        continuation_version=2,
        continuation_renamed_steps={"load": "import"},
    )
    def deployed(self: Any, count: int, note: str = "") -> str:
        """Import, audit if the task has begun with an audit, and report."""
        for row in self.iterate("import", range(count)):
            time.sleep(0.03)
            trace("item", f"{self.request.id}:{row}")
        if self.continuation.version >= 2:
            self.step("audit", trace, "audit", self.request.id)
        self.step("report", trace, "report", self.request.id)
        return "new"

    @app.task(base=ContinuableTask, bind=True, name="project.new_name")
    def named(self: Any, count: int) -> int:
        """The same as rows."""
        return work(self, count)

    app.tasks["project.old_name"] = app.tasks["project.new_name"]
