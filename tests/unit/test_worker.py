"""The flag, the watcher, the hooks that hear a stop, and the seams they go through."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

from celery_continuations import ContinuableTask, celery_internals
from celery_continuations.core.run import Run
from celery_continuations.execution.direct import DirectExecution
from celery_continuations.execution.triggers import Watch, Watcher
from celery_continuations.process import stop_flag as flags
from tests.support.worker import make_app


def await_(condition: Any, what: Any) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, what() if callable(what) else what
        time.sleep(0.002)


def test_a_flag_is_seen_through_its_file_and_only_goes_up() -> None:
    flag = flags.new_flag("a@test")
    other = flags.StopFlag(flag.path)
    assert other.level == flags.RUNNING
    flag.raise_to(flags.COLD)
    flag.raise_to(flags.STOPPING)
    assert other.level == flags.COLD
    flag.remove()
    assert not Path(flag.path).exists()
    assert other.level == flags.COLD, "those who have it mapped keep seeing it"


def test_a_flag_is_seen_by_forked_children_and_not_removed_by_them() -> None:
    flag = flags.new_flag("fork@test")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        flag.remove()
        while not flags.flag_at(flag.path).level:
            time.sleep(0.001)
        os.write(write, b"seen")
        os._exit(0)
    assert Path(flag.path).exists()
    flag.raise_to(flags.STOPPING)
    assert os.read(read, 4) == b"seen"
    os.waitpid(child, 0)
    flag.remove()


def test_a_worker_of_the_same_name_starts_with_its_flag_down() -> None:
    first = flags.new_flag("again@test")
    first.raise_to(flags.STOPPING)
    second = flags.new_flag("again@test")
    found = flags.flag_of("again@test")
    assert found is second
    assert second.level == flags.RUNNING
    first.remove()
    second.remove()


def test_the_flag_of_a_worker_that_has_ended_is_up() -> None:
    assert flags.flag_at("/no/such/flag").level == flags.STOPPING


def test_where_there_is_no_worker_nothing_stops(monkeypatch: Any) -> None:
    monkeypatch.delenv("CELERY_CONTINUATIONS_FLAG", raising=False)
    assert flags.flag_at(None).level == flags.RUNNING


def test_a_worker_killed_with_9_leaves_no_flag_behind_for_good(tmp_path: Path, monkeypatch: Any) -> None:
    # A folder of its own: any worker that starts on this machine removes what it finds abandoned.
    monkeypatch.setattr(flags, "_SHARED_MEMORY", str(tmp_path))
    code = f"""
from celery_continuations.process import stop_flag as flag
import os
flag._SHARED_MEMORY = {str(tmp_path)!r}
print(flag.new_flag("killed@test").path, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    left = Path(done.stdout.strip())
    assert left.exists()
    living = flags.new_flag("next@test")
    assert not left.exists()
    newest = flags.new_flag("another@test")
    assert Path(living.path).exists(), "a living worker's flag stays"
    living.remove()
    newest.remove()


def make_run() -> Run:
    class Request:
        id = "some-id"

    return DirectExecution(type("Task", (), {"continuation_version": 1})(), Request()).run


@pytest.mark.parametrize("due", ["flag", "save_at", "leave_at", "ask_at"])
def test_the_watcher_raises_attention_when_something_is_due(due: str, monkeypatch: Any) -> None:
    flag = flags.new_flag("watched@test")
    monkeypatch.delenv("CELERY_CONTINUATIONS_FLAG")
    watcher = Watcher()
    idle, busy = Watch(make_run(), flags.flag_at(None)), Watch(make_run(), flag)
    watcher.add(idle)
    watcher.add(busy)
    assert not busy.run.attention
    if due == "flag":
        flag.raise_to(flags.STOPPING)
    else:
        setattr(busy, due, time.monotonic())
    await_(lambda: busy.run.attention, "attention")
    assert not idle.run.attention
    watcher.remove(idle)
    watcher.remove(busy)
    await_(lambda: not watcher._looking, "the thread's end")
    watcher.add(idle)
    idle.save_at = time.monotonic()
    await_(lambda: idle.run.attention, "a thread again")
    watcher.remove(idle)
    flag.remove()


def test_the_watcher_looks_while_gevent_computes() -> None:
    pytest.importorskip("gevent")
    code = """
from gevent import monkey
monkey.patch_all()
import time
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.process.stop_flag import new_flag, STOPPING
from celery_continuations.execution.triggers import Watch, watcher
flag = new_flag("green@test")
run = Run("id", Snapshot(), None)
watcher.add(Watch(run, flag))
flag.raise_to(STOPPING)
until = time.monotonic() + 10
while not run.attention and time.monotonic() < until:
    pass  # never gives the hub a turn
print(run.attention)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_c27_several_workers_in_one_process() -> None:
    """One after the other, as tests start them: the stop of one is nothing to the next."""
    from celery_continuations.execution.triggers import watcher

    app = make_app(worker_hijack_root_logger=False, broker_transport_options={"polling_interval": 0.01})

    @app.task(base=ContinuableTask, bind=True, name="embedded")
    def embedded(self: Any) -> int:
        for _ in self.iterate("loop", range(5)):
            for watch in tuple(watcher._watches):
                watch.look()
        return self.continuation.executions  # type: ignore[no-any-return]

    for pool in ("threads", "solo", "threads"):
        with start_worker(app, perform_ping_check=False, pool=pool, concurrency=1, shutdown_timeout=20):
            assert embedded.delay().get(timeout=10) == 1


def test_an_embedded_worker_that_ends_hands_its_task_over() -> None:
    app = make_app(worker_hijack_root_logger=False, broker_transport_options={"polling_interval": 0.01})
    started = threading.Event()

    @app.task(base=ContinuableTask, bind=True, name="handed over")
    def embedded(self: Any) -> int:
        for _ in self.iterate("loop", range(10_000)):
            started.set()
            time.sleep(0.001)
        return self.continuation.executions  # type: ignore[no-any-return]

    options = {"perform_ping_check": False, "pool": "threads", "concurrency": 1, "shutdown_timeout": 20}
    with start_worker(app, **options):
        result = embedded.delay()
        assert started.wait(10)
    await_(lambda: result.state == "RETRY", lambda: f"RETRY, and not {result.state} {result.info}")
    assert str(result.info).startswith("Interrupted at loop:")
    result.forget()


# -- the seams: each of these fails when what it rests on changes


def test_seam_around_soft_shutdown() -> None:
    from celery.worker import WorkController

    order: list[str] = []

    class Worker:
        pool_cls = object

        def wait_for_soft_shutdown(self) -> None:
            order.append("waits")

    worker = Worker()
    celery_internals.around_soft_shutdown(worker, lambda: order.append("before"), lambda: order.append("after"))
    worker.wait_for_soft_shutdown()
    assert order == ["before", "waits", "after"]
    assert callable(WorkController.wait_for_soft_shutdown)
    import inspect

    from celery.apps import worker as celery_worker

    source = inspect.getsource(celery_worker.on_cold_shutdown)
    cancels = [f"worker.consumer.{name}()" for name in celery_internals._CANCELLATIONS]
    (cancel,) = [call for call in cancels if call in source]
    assert source.index("worker.wait_for_soft_shutdown()") < source.index(cancel)


def test_seam_pool_children_and_their_signal() -> None:
    assert celery_internals.in_pool_child() is False
    assert celery_internals.terminate_signal() == signal.SIGTERM
    code = "from celery_continuations import celery_internals; print(celery_internals.terminate_signal())"
    env = {**os.environ, "REMAP_SIGTERM": "SIGQUIT"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) == signal.SIGQUIT


def test_seam_predicates() -> None:
    from celery.exceptions import Ignore, Reject, Retry

    assert all(map(celery_internals.is_predicate, (Retry(), Ignore(), Reject())))
    assert not celery_internals.is_predicate(ValueError())


def test_seam_pool_pids(app: Celery) -> None:
    from celery.concurrency.prefork import TaskPool as Prefork
    from celery.concurrency.solo import TaskPool as Solo

    class Owner:
        pool: Any = None

    assert celery_internals.pool_pids(Owner()) == []
    Owner.pool = Solo(app=app)
    assert celery_internals.pool_pids(Owner()) == []
    Owner.pool = Prefork(2, app=app)
    Owner.pool.start()
    try:
        assert sorted(celery_internals.pool_pids(Owner())) == sorted(Owner.pool.info["processes"])
        assert len(celery_internals.pool_pids(Owner())) == 2
    finally:
        Owner.pool.terminate()


def test_seam_backends_that_keep_results(tmp_path: Any) -> None:
    def keeps(backend: str | None) -> bool:
        return celery_internals.keeps_results(
            Celery("seam", backend=backend, broker="memory://", set_as_current=False).backend
        )

    assert keeps(f"file://{tmp_path}")
    assert not keeps("rpc://")
    assert not keeps(None)


def test_seam_a_lost_process() -> None:
    from billiard.einfo import ExceptionWithTraceback
    from celery.exceptions import WorkerLostError

    def wrapped(error: BaseException) -> Any:
        try:
            raise error
        except BaseException as exc:
            return ExceptionWithTraceback(exc, exc.__traceback__)

    assert celery_internals.is_lost_process(WorkerLostError())
    assert celery_internals.is_lost_process(wrapped(SystemExit(1)))
    assert not celery_internals.is_lost_process(wrapped(ValueError()))
    assert not celery_internals.is_lost_process(ValueError())


def test_seam_ignore_result() -> None:
    from celery.app.task import Context

    class Task:
        ignore_result = True

    assert celery_internals.ignore_result_of(Task, Context()) is True
    assert celery_internals.ignore_result_of(Task, Context(ignore_result=None)) is True
    assert celery_internals.ignore_result_of(Task, Context(ignore_result=False)) is False


def test_seam_serializers() -> None:
    assert celery_internals.serializer_of("application/json") == "json"
    assert celery_internals.serializer_of("application/x-python-serialize") == "pickle"
    assert celery_internals.serializer_of("application/data") is None
    assert celery_internals.serializer_of(None) is None


def test_seam_promises(app: Celery) -> None:
    def body(self: Any) -> None:
        pass

    promise = app.task(bind=True, name="promised", queue=None)(body)
    assert celery_internals.promised_options(promise) == {"bind": True, "name": "promised", "queue": None}
    evaluated: list[Any] = []
    celery_internals.when_evaluated(promise, evaluated.append)
    assert evaluated == []
    app.finalize()
    assert [task.name for task in evaluated] == ["promised"]
    assert celery_internals.promised_options(promise) is None
    assert celery_internals.promised_options(app.tasks["promised"]) is None


def test_seam_requests_are_as_the_republisher_reads_them(app: Celery) -> None:
    """Attributes that only the instance has, and that ``Context`` does not promise."""
    from celery.app.task import Context

    context = Context({"argsrepr": "a", "compression": "zlib", "mine": 1, "continuation_generation": 2})
    assert (context.argsrepr, context.compression) == ("a", "zlib")
    assert context.headers == {"mine": 1, "continuation_generation": 2}
    message = app.amqp.create_task_message("id", "name", (), {})
    assert set(message.body[2]) == {"callbacks", "errbacks", "chain", "chord"}


# -- a pool child that is told to end


@pytest.fixture
def child(monkeypatch: Any) -> Any:
    """The handler of a pool child, in this process, with a previous handler that only counts."""
    from celery_continuations.execution import sigterm

    calls: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *args: calls.append(1))
    flag = flags.new_flag("child@test")
    monkeypatch.setattr(sigterm, "_deferring", False)
    monkeypatch.setattr(sigterm, "PATIENCE", 0.2)
    monkeypatch.setattr(sigterm, "COLD_GRACE", 0.05)
    monkeypatch.setattr(celery_internals, "in_pool_child", lambda: True)
    watcher = Watcher()
    monkeypatch.setattr(sigterm, "watcher", watcher)
    sigterm.defer_terminate(flag)
    watch = Watch(make_run(), flag)
    yield flag, watcher, watch, calls
    watcher.remove(watch)
    signal.signal(signal.SIGTERM, before)
    flag.remove()


def test_a_child_told_to_end_while_its_worker_runs_on_ends(child: Any) -> None:
    """revoke(terminate=True), hard time limits."""
    _, watcher, watch, calls = child
    watcher.add(watch)
    signal.raise_signal(signal.SIGTERM)
    assert calls == [1]


def test_a_child_waits_for_the_flag_that_its_parent_is_about_to_raise(child: Any) -> None:
    flag, watcher, watch, calls = child
    watcher.add(watch)
    threading.Timer(0.05, flag.raise_to, [flags.STOPPING]).start()
    signal.raise_signal(signal.SIGTERM)
    assert calls == [], "the task leaves at its next checkpoint"
    signal.raise_signal(signal.SIGTERM)
    assert calls == [1], "whoever says it twice means it"


def test_an_idle_child_ends_with_its_worker(child: Any) -> None:
    flag, _, _, calls = child
    flag.raise_to(flags.STOPPING)
    signal.raise_signal(signal.SIGTERM)
    assert calls == [1]


def test_a_cold_stop_leaves_the_item_in_hand_some_time_and_no_more(child: Any) -> None:
    flag, watcher, watch, calls = child
    watcher.add(watch)
    flag.raise_to(flags.COLD)
    signal.raise_signal(signal.SIGTERM)
    assert calls == []
    await_(lambda: calls == [1], "the second signal, by itself")


def test_no_signal_cuts_what_is_between_a_saved_progress_and_its_message(child: Any) -> None:
    flag, watcher, watch, calls = child
    watcher.add(watch)
    flag.raise_to(flags.COLD)
    watcher.leave(watch)
    for _ in range(3):
        signal.raise_signal(signal.SIGTERM)
    assert calls == []
    watcher.remove(watch)
    signal.raise_signal(signal.SIGTERM)
    assert calls == [1]


def test_what_the_parent_watches_is_not_the_childs() -> None:
    from celery_continuations.execution.triggers import watcher

    watch = Watch(make_run(), flags.flag_at(None))
    watcher.add(watch)
    child = os.fork()
    if child == 0:
        os._exit(int(watcher.running or watcher._looking))
    assert os.waitpid(child, 0)[1] == 0
    watcher.remove(watch)


def test_a_hangup_that_is_not_celerys_does_not_stop_anything() -> None:
    from celery.worker import state

    from celery_continuations.worker.bootstep import Hearing

    heard: list[str] = []
    before = signal.signal(signal.SIGHUP, lambda *args: heard.append("own"))
    hearing = Hearing.__new__(Hearing)
    hearing.flag = flags.new_flag("hangup@test")
    try:
        hearing._hear_hangup()
        signal.raise_signal(signal.SIGHUP)
        assert (heard, hearing.flag.level) == (["own"], flags.RUNNING)
        state.should_stop = 0
        signal.raise_signal(signal.SIGHUP)
        assert hearing.flag.level == flags.STOPPING
    finally:
        state.should_stop = None
        signal.signal(signal.SIGHUP, before)
        hearing.flag.remove()


def test_workers_that_start_at_once_leave_each_others_flags_alone() -> None:
    code = """
import os
from celery_continuations.process.stop_flag import new_flag
made = [new_flag(f"{n}@test") for n in range(100)]
print(sum(os.path.exists(flag.path) for flag in made))
for flag in made:
    flag.remove()
"""
    racing = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in racing] == ["100"] * 4
