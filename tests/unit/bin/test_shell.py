"""The commands of the shell, through click's own runner."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner
from kombu.exceptions import OperationalError

from celery_continuations import AppTask, StoreError
from celery_continuations.bin import doctor, facts, shown, watching
from celery_continuations.bin import sweeping as bin_sweeping
from celery_continuations.bin.continuations import continuations
from celery_continuations.core.snapshot import Snapshot, Waiting
from celery_continuations.messages.saved import SavedMessage
from celery_continuations.stores import Fence, Record, Status, Update, open_store
from tests.support.worker import make_app

DOCS = Path(__file__).parents[3] / "docs"


def nothing(self: Any) -> None:
    pass


def waits(self: Any) -> Any:
    return self.wait_for("approval")


def sleeps(self: Any) -> None:
    self.sleep(60)


@pytest.fixture
def run(app: Celery) -> Any:
    def run(*words: str, code: int = 0, app: Celery = app, **options: Any) -> Any:
        obj = CLIContext(app=app, no_color=options.pop("no_color", False), workdir=None)
        found = CliRunner().invoke(continuations, words, obj=obj, **options)
        assert found.exit_code == code, (found.output, found.exception)
        return found

    return run


@pytest.fixture
def rows(run: Any, run_json: Any) -> Any:
    """What a list prints, as objects."""
    return lambda *words, **options: run_json("list", *words, **options)


@pytest.fixture
def run_json(run: Any) -> Any:
    return lambda *words, **options: json.loads(run(*words, "--json", **options).stdout)


@pytest.fixture
def put(app: Celery) -> Any:
    """Write a record as it would be after ``age`` seconds."""

    def put(
        task_id: str, status: Status = Status.RUNNING, age: float = 0, task: str = "proj.rows", **snapshot: Any
    ) -> None:
        message = {"task": task, "headers": {"argsrepr": "(1,)", "kwargsrepr": "{}"}, "began": time.time() - age}
        message |= {"route": {}, "properties": {}, "sending": {}, "content": [], "body": ""}
        owner = "w/1.1/a" if status == Status.RUNNING else ""
        update = Update(Fence(1, status, owner), Snapshot(**snapshot).dumps(), json.dumps(message))
        assert open_store(app, "memory").compare_and_swap(task_id, None, update)

    return put


@pytest.fixture
def broken(app: Celery) -> None:
    assert open_store(app, "memory").compare_and_swap(
        "bad", None, Update(Fence(1, Status.RUNNING, "w/1.1/a"), "no snapshot")
    )


# -- list


def test_the_oldest_comes_first_and_what_has_ended_does_not(rows: Any, put: Any) -> None:
    put("young", age=10)
    put("old", age=100)
    put("failed", Status.FAILED, age=50)
    put("done", Status.DONE, age=70)
    assert [one["id"] for one in rows()] == ["old", "failed", "young"]
    assert [one["id"] for one in rows("--all")] == ["old", "done", "failed", "young"]
    assert [one["id"] for one in rows("--state", "done", "--state", "failed")] == ["done", "failed"]


def test_filters_by_task_and_age(rows: Any, put: Any) -> None:
    put("a", age=10)
    put("b", age=8000, task="other.x")
    assert [one["id"] for one in rows("--task", "proj.*")] == ["a"]
    assert [one["id"] for one in rows("--older", "2h")] == ["b"]
    assert [one["id"] for one in rows("--younger", "90s")] == ["a"]
    assert [one["id"] for one in rows("--older", "5", "--younger", "3d")] == ["b", "a"]


def test_a_list_says_where_a_task_is(run: Any, put: Any) -> None:
    put("counted", age=130, current=("import", 12), progress=(1, 4), completed={})
    put("waits", Status.WAITING, current=("w", None), waiting=Waiting("delivery", None, "approval"))
    text = run("list").stdout
    assert re.search(r"counted +proj\.rows +running +2m +import 25%", text)
    assert "waits for 'approval'" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("until", [float("inf"), float("nan"), 1e300])
def test_a_sleep_without_an_end_that_release_0_1_accepted_is_listed(run: Any, put: Any, until: float) -> None:
    put("sleeps", Status.WAITING, current=("nap", None), waiting=Waiting("time", until))
    assert re.search("sleeps .*sleeps", run("list").stdout)
    assert "sleeps" in run("show", "sleeps").stdout


def test_an_unreadable_record_is_a_line_and_an_exit_code(run: Any, rows: Any, put: Any, broken: None) -> None:
    put("good")
    found = run("list", "--task", "nothing", code=1).stdout
    assert "unreadable: the snapshot cannot be read" in found
    assert {one["id"]: bool(one["error"]) for one in rows(code=1)} == {"good": False, "bad": True}


@pytest.fixture
def damaged(app: Celery) -> list[str]:
    """Records of many kinds that cannot be read or shown; return their ids."""
    good = Snapshot(current=("a", 1)).dumps()
    plain = {"task": "t", "headers": {}, "began": 1.0, "route": {}, "properties": {}, "sending": {}, "content": [],
             "body": ""}  # fmt: skip
    snapshots = [
        {"progress": ["x", "y"]}, {"progress": [5, "y"]}, {"waiting": ["time", "x", None]}, {"current": [5]},
        {"saved": []}, {"version": 99}, {"current": {"a": 1}},
    ]  # fmt: skip
    messages = [
        {"began": "x"}, {"began": 1e999}, {"began": -1e999}, {"headers": []}, {"task": 5},
        {"z": {"__type__": "decimal", "__value__": "x"}},
    ]  # fmt: skip
    records = [
        *((json.dumps({**json.loads(good), **one}), json.dumps(plain)) for one in snapshots),
        *((good, json.dumps({**plain, **one})) for one in messages),
        ("[" * 100_000, json.dumps(plain)),
        (good, "[" * 100_000),
    ]
    store = open_store(app, "memory")
    for number, (snapshot, message) in enumerate(records):
        assert store.compare_and_swap(f"bad{number}", None, Update(Fence(1, Status.WAITING), snapshot, message))
    return [f"bad{number}" for number in range(len(records))]


def test_no_record_hides_another(run: Any, run_json: Any, app: Celery, put: Any, damaged: list[str]) -> None:
    put("good", current=("import", 12), progress=(1, 4))
    listed = run("list", code=1).stdout
    assert len(listed.splitlines()) == len(damaged) + 2, "one line for each"
    assert "good " in listed and "import 25%" in listed
    assert [one["id"] for one in run_json("list", code=1) if not one["error"]] == ["good"]
    assert {one["id"] for one in run_json("list", code=1) if one["error"]} == set(damaged)
    found = run("show", *damaged, "good", code=1)
    assert "import" in found.stdout
    assert found.stderr.count("bad") >= len(damaged)
    seen = next(watching.looks(app, (*damaged, "good"), 0))
    assert {one["id"] for one in seen if one["error"]} == set(damaged)
    watching.lines(iter([seen]), lambda line: None, as_json=False)
    (report,) = [one for one in doctor.examine(app) if one.name == "records"]
    assert f"{len(damaged)} of {len(damaged) + 1} cannot be read" in report.text


@pytest.mark.parametrize("words", [("list",), ("show", "{id}"), ("doctor",), ("sweep",)], ids=lambda words: words[0])
def test_no_stored_text_controls_the_terminal(run: Any, app: Celery, words: tuple[str, ...]) -> None:
    evil = "\x1b]0;x\x07\x1b[31m\x9b1m\u202e\n"
    store = open_store(app, "memory")
    message = json.dumps({"task": f"t{evil}"})
    store.compare_and_swap(f"bad{evil}", None, Update(Fence(1, Status.QUEUED), "{", message, due_in=-5))
    found = run(*(word.format(id=f"bad{evil}") for word in words), code=1)
    text = found.stdout + found.stderr
    assert "bad?" in text
    assert not {char for char in text if not char.isprintable()} - {"\n"}


def test_nothing_there(run: Any, rows: Any) -> None:
    assert run("list").stdout == "no such tasks\n"
    assert rows() == []


def test_a_wrong_duration(run: Any) -> None:
    assert "is not a duration" in run("list", "--older", "5 weeks", code=2).output


def test_a_list_fits_the_terminal(monkeypatch: Any) -> None:
    monkeypatch.setattr(shown, "width", lambda: 80)
    one = {**facts.nothing("x" * 36, "cancelled"), "task": "proj." * 20 + "rows", "step": "s" * 90, "began": 1.0}
    for found in (one, {**one, "error": "e" * 200}, {**one, "id": "y" * 200}):
        for line in shown.table([found]):
            assert len(click.unstyle(line)) <= 80
    assert "rows" in "".join(shown.table([one]))


def test_what_would_steer_a_terminal_is_not_shown(run: Any, put: Any) -> None:
    put("a", task="x\x1b[31m\ny")
    assert "x?[31m?y" in run("list").stdout
    assert "x?[31m?y" in run("show", "a").stdout


def test_colours_only_where_they_are_wanted(run: Any, put: Any) -> None:
    put("a")
    assert "\x1b[" in run("list", color=True).stdout
    assert "\x1b[" not in run("list", color=True, no_color=True).stdout


# -- show


def test_everything_is_shown(run: Any, run_json: Any, worker: Any, task: Any) -> None:
    def body(self: Any, count: int) -> None:
        self.saved["total"] = 7
        self.step("first", lambda: 1)
        self.wait_for("approval")

    result = task(body, name="proj.body").delay(5)
    worker.deliver()
    text = run("show", result.id).stdout
    for part in ("proj.body", "waiting, generation 1", "(5,) {}", "first: value", "waits for 'approval'", "total = 7"):
        assert part in text
    [one] = run_json("show", result.id)
    assert one["steps"] == [{"name": "first", "kind": "value"}]
    assert (one["waiting"]["kind"], one["waiting"]["key"]) == ("delivery", "approval")
    assert abs(one["began"] - time.time()) < 60
    assert one["saved"] == {"total": 7}


def test_errors_and_losses_are_shown(run: Any, put: Any) -> None:
    error = {"type": "ValueError", "message": "bad row", "step": "import", "cursor": 12}
    put("a", Status.FAILED, errors=[error], losses=(1, 2), run_time=3.25, reason="stopping", left_at=time.time())
    text = run("show", "a").stdout
    assert "ValueError: bad row (in import at 12)" in text
    assert "1 alone, 2 with others" in text
    assert "stopping" in text


def test_one_that_is_not_there_does_not_stop_the_others(run: Any, put: Any) -> None:
    put("there")
    found = run("show", "nowhere", "there", code=1)
    assert found.stderr == "nowhere: it has no record\n"
    assert "proj.rows" in found.stdout


def test_a_message_kept_before_there_was_an_age(worker: Any, task: Any, record: Any) -> None:
    result = task(sleeps).delay()
    worker.deliver()
    message = json.loads(record(result.id).message)
    del message["began"]
    assert SavedMessage.loads(json.dumps(message)).began is None
    old = replace(record(result.id), message=json.dumps(message))
    assert facts.brief("a", old)["began"] is None
    assert len(list(shown.table([facts.brief("a", old)]))) == 2


# -- steering


def test_a_task_is_paused_resumed_and_cancelled(run: Any, run_json: Any, worker: Any, task: Any, record: Any) -> None:
    result = task(waits).delay()
    worker.deliver()
    assert run("pause", result.id).stdout == f"{result.id}: paused\n"
    assert run("resume", result.id).stdout == f"{result.id}: queued\n"
    [one] = run_json("cancel", result.id)
    assert one["state"] == "cancelled"
    assert record(result.id).fence.status == Status.CANCELLED
    assert "it was cancelled" in run("resume", result.id, code=1).stderr


def test_a_running_task_is_asked(run: Any, put: Any) -> None:
    put("a")
    assert run("cancel", "a").stdout == "a: will cancel at its next checkpoint\n"


def test_a_payload_is_delivered(run: Any, worker: Any, task: Any) -> None:
    for words, options in ((['{"by": "ann"}'], {}), (["-"], {"input": '{"by": "ann"}'})):
        result = task(waits).delay()
        worker.deliver()
        run("deliver", result.id, "approval", *words, **options)
        worker.drain()
        assert result.get() == {"by": "ann"}


def test_values_that_are_not_json_are_not_delivered(run: Any) -> None:
    assert "this is not JSON" in run("deliver", "a", "approval", "yes", code=2).stderr
    assert "it is nested too deeply" in run("deliver", "a", "approval", "[" * 100_000, code=2).stderr
    assert "nested 65 levels deep" in run("deliver", "a", "approval", "[" * 65 + "]" * 65, code=1).stderr


def test_a_failed_task_is_retried_from_a_step(run: Any, worker: Any, task: Any) -> None:
    done: list[str] = []

    def body(self: Any) -> str:
        self.step("first", done.append, "first")
        if len(done) < 2:
            raise ValueError("no")
        return "end"

    result = task(body, continuation_resume_errors_after_advancing=False).delay()
    worker.drain()
    assert "has not begun a step 'x'" in run("retry", result.id, "--step", "x", code=1).stderr
    run("retry", result.id, "--step", "first")
    worker.drain()
    assert (result.get(), done) == ("end", ["first", "first"])


def test_one_that_fails_does_not_stop_the_others(run: Any, run_json: Any, put: Any, record: Any) -> None:
    put("done", Status.DONE)
    put("a")
    found = run("pause", "done", "a", code=1)
    assert found.stderr == "done: task done: it has ended\n"
    assert record("a").fence.command == "pause"
    assert [bool(one["error"]) for one in run_json("pause", "done", "a", code=1)] == [True, False]


def test_a_broker_that_is_away_is_one_line(run: Any, put: Any, monkeypatch: Any) -> None:
    def refuse(*args: Any) -> None:
        raise OperationalError("refused")

    put("a", Status.PAUSED)
    monkeypatch.setattr("celery_continuations.control.publish_saved", refuse)
    said = run("resume", "a", code=1).stderr
    assert "a worker will publish it: refused" in said
    assert said.count("\n") == 1


def test_a_cancel_of_an_unknown_id_says_so(run: Any, run_json: Any, worker: Any, task: Any, record: Any) -> None:
    problem = "no such task has begun: its id may be mistyped, or its message still in a queue"
    assert problem in run("cancel", "typo", code=1).stderr
    [one] = run_json("cancel", "tipo", code=1)
    assert problem in one["error"]
    result = task(waits).delay()
    run("cancel", result.id, code=1)
    worker.drain()
    assert result.state == "REVOKED", "a task whose message is in a queue does not run"
    assert record(result.id).fence.status == Status.CANCELLED


def test_a_terminal_is_asked_before_a_cancel(run: Any, put: Any, record: Any, monkeypatch: Any) -> None:
    put("a")
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(
        "celery_continuations.bin.continuations.sys", SimpleNamespace(stdin=terminal, stdout=sys.stdout)
    )
    assert "Cancel this task?" in run("cancel", "a", input="n\n", code=1).output
    assert record("a").fence.command is None
    run("cancel", "a", "--yes")
    assert record("a").fence.command == "cancel"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--all"], ["a", "b", "chosen-paused", "chosen-waits"]),
        (["--task", "proj.*"], ["b", "chosen-paused", "chosen-waits"]),
        (["--state", "waiting", "--status", "paused"], ["chosen-paused", "chosen-waits"]),
        (["--older", "2h"], ["chosen-waits"]),
        (["--older-than", "30s", "--task", "proj.*", "--state", "running"], ["b"]),
        (["--task", "another.*"], []),
    ],
)
def test_tasks_are_chosen_for_a_cancel(
    run: Any, run_json: Any, put: Any, record: Any, options: list[str], expected: list[str]
) -> None:
    put("a", age=10, task="other.x")
    put("b", age=60)
    put("chosen-waits", Status.WAITING, age=8000)
    put("chosen-paused", Status.PAUSED, age=20)
    put("done", Status.DONE, age=9000)
    put("failed", Status.FAILED, age=9000)
    assert "only with --yes" in run("cancel", *options, code=2).stderr
    said = run("cancel", *options, "--yes").stdout.splitlines()
    assert sorted(line.partition(":")[0] for line in said[:-1]) == expected
    count = f"{len(expected)} task{'' if len(expected) == 1 else 's'}"
    assert said[-1] == f"{count} cancelled, those that run at their next checkpoint"
    cancelled = {
        task_id
        for task_id in ("a", "b", "chosen-waits", "chosen-paused", "done", "failed")
        if record(task_id).fence.status == Status.CANCELLED or record(task_id).fence.command == "cancel"
    }
    assert sorted(cancelled) == expected


def test_a_cancel_takes_ids_or_a_choice(run: Any, put: Any) -> None:
    assert "not both" in run("cancel", "a", "--all", "--yes", code=2).stderr
    assert "give ids" in run("cancel", "--yes", code=2).stderr


def test_a_terminal_is_asked_how_many_to_cancel(run: Any, put: Any, record: Any, monkeypatch: Any) -> None:
    put("a")
    put("b", Status.WAITING)
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(
        "celery_continuations.bin.continuations.sys", SimpleNamespace(stdin=terminal, stdout=sys.stdout)
    )
    assert "Cancel these 2 tasks?" in run("cancel", "--all", input="n\n", code=1).output
    assert record("b").fence.status == Status.WAITING


def test_a_task_is_found_in_the_store_of_its_own(
    run: Any, run_json: Any, app: Celery, task: Any, tmp_path: Path
) -> None:
    mine = f"file://{tmp_path}"
    task(nothing, continuation_store=mine)
    store = open_store(app, mine)
    assert store.compare_and_swap("a", None, Update(Fence(1, Status.WAITING), message=""))
    run("pause", "a")
    assert store.read("a").fence.status == Status.PAUSED  # type: ignore[union-attr]
    assert [one["id"] for one in run_json("list")] == ["a"]


def test_without_a_store_it_is_said(run: Any) -> None:
    app = make_app()
    app.conf.continuation_store = "message"
    assert "no configured store keeps records" in run("list", app=app, code=1).stderr


# -- watch


def test_changes_are_lines_and_it_ends_with_the_task(app: Celery, run: Any, put: Any, monkeypatch: Any) -> None:
    put("a", current=("import", 1), progress=(1, 4))
    store = open_store(app, "memory")
    states = iter([(2, Status.RUNNING), (2, Status.RUNNING), (4, Status.DONE)])

    def go_on(seconds: float) -> None:
        done, status = next(states)
        old = store.read("a")
        fence = Fence(1, status, "w/1.1/a" if status == Status.RUNNING else "")
        assert old and store.compare_and_swap(
            "a", old.fence, Update(fence, Snapshot(current=("import", done), progress=(done, 4)).dumps())
        )

    monkeypatch.setattr(watching, "time", SimpleNamespace(time=time.time, sleep=go_on, strftime=time.strftime))
    seen = [json.loads(line) for line in run("watch", "a", "--json").stdout.splitlines()]
    assert [(one["done"], one["state"]) for one in seen] == [(1, "running"), (2, "running"), (4, "done")]
    assert seen[1]["rate"] > 0 and seen[1]["left"] > 0
    states = iter([])
    assert "a proj.rows done import 100%" in run("watch", "a").stdout


def test_ctrl_c_ends_a_watch(run: Any, monkeypatch: Any) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching, "time", SimpleNamespace(time=time.time, sleep=interrupt, strftime=time.strftime))
    run("watch")


def test_bars_need_rich_and_say_so() -> None:
    assert "celery-continuations[shell]" in watching.missing_rich().message


# -- sweep


def test_a_sweep_recovers_what_a_dead_worker_left(app: Celery, run: Any, run_json: Any, worker: Any, task: Any) -> None:
    result = task(waits).delay()
    worker.deliver()
    store = open_store(app, "memory")
    found = store.read(result.id)
    assert found and store.compare_and_swap(
        result.id, found.fence, Update(Fence(2, Status.RUNNING, "elsewhere.1.1.a/1.1/a"))
    )
    store.renew("elsewhere.1.1.a", -1)
    assert run("sweep").stdout == "nothing to recover\n"  # no lease is judged at the first look
    app.conf.continuation_lease = 1
    began = time.monotonic()
    assert [(one["id"], one["action"]) for one in run_json("sweep", "--wait")] == [(result.id, "recovered")]
    assert time.monotonic() - began >= 1
    worker.drain()


def test_a_slow_store_restarts_the_wait(monkeypatch: Any) -> None:
    now = [0.0]
    answers = iter([0.1, 5.0, *[0.1] * 20])

    def scan() -> None:
        now[0] += next(answers)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(bin_sweeping, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    bin_sweeping._watch(SimpleNamespace(scan=scan), 4)  # type: ignore[arg-type]
    assert now[0] > 9


# -- doctor


def levels(app: Celery) -> set[tuple[str, str]]:
    return {(one.name, one.level) for one in doctor.examine(app)}


@pytest.fixture
def sound(app: Celery, tmp_path: Path, task: Any) -> Celery:
    app.conf.update(continuation_store=f"file://{tmp_path}", worker_prefetch_multiplier=1)
    app.conf.worker_soft_shutdown_timeout = 10
    task(nothing)
    return app


def test_nothing_to_say_of_a_sound_configuration(sound: Celery, run: Any, run_json: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("INVOCATION_ID", raising=False)
    assert {one["level"] for one in run_json("doctor")} == {"ok"}
    assert run("doctor").stdout.endswith("0 problems\n")


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"continuation_store": "memory"}, ("store", "problem")),
        ({"continuation_store": "auto", "result_backend": "cache+memory://"}, ("store", "problem")),
        ({"continuation_store": "message"}, ("store", "hint")),
        ({"continuation_sweep_interval": 0}, ("sweep_interval", "problem")),
        ({"worker_prefetch_multiplier": 4}, ("prefetch", "hint")),
        ({"worker_soft_shutdown_timeout": 0}, ("soft shutdown", "hint")),
        ({"continuation_lease": "long"}, ("settings", "problem")),
        ({"continuation_store": "file:///proc/nowhere"}, ("settings", "problem")),
    ],
)
def test_what_breaks_a_promise_is_found(sound: Celery, settings: Any, finding: Any) -> None:
    sound.conf.update(settings)
    assert finding in levels(sound)


@pytest.mark.parametrize(("backend", "level"), [("rpc://", "problem"), ("disabled://", "hint")])
def test_backends_that_cannot_be_queried(tmp_path: Path, backend: str, level: str) -> None:
    app = Celery("proj", broker="memory://", backend=backend, set_as_current=False)
    app.conf.continuation_store = f"file://{tmp_path}"
    assert ("result backend", level) in levels(app)


def test_early_acknowledgement(sound: Celery, task: Any) -> None:
    task(nothing, acks_late=False)
    task(nothing, reject_on_worker_lost=False)
    task(nothing, base=AppTask)
    found = levels(sound)
    for name in ("acks_late", "reject_on_worker_lost"):
        assert {(name, "problem"), (name, "hint")} <= found


def test_slices_longer_than_the_visibility_timeout(sound: Celery, monkeypatch: Any) -> None:
    sound.conf.update(continuation_store="message", continuation_max_runtime=600)
    sound.conf.broker_transport_options = {"visibility_timeout": 600}
    assert ("max_runtime", "problem") in levels(sound)
    sound.conf.continuation_max_runtime = 300
    assert ("max_runtime", "problem") not in levels(sound)


def test_a_hint_under_systemd(sound: Celery, monkeypatch: Any) -> None:
    monkeypatch.setenv("INVOCATION_ID", "1")
    assert ("systemd", "hint") in levels(sound)


def test_records_that_cannot_be_read(app: Celery, broken: None) -> None:
    assert ("records", "problem") in levels(app)


def test_a_store_that_is_away(app: Celery, monkeypatch: Any) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise StoreError("memory", "away")

    monkeypatch.setattr(open_store(app, "memory"), "scan", refuse)
    assert ("reach", "problem") in levels(app)


def test_waits_that_outlast_results(app: Celery, put: Any) -> None:
    put("a", Status.WAITING, waiting=Waiting("time", time.time() + 7200, None))
    assert ("result_expires", "hint") not in levels(app)
    app.conf.result_expires = 3600
    assert ("result_expires", "hint") in levels(app)


def test_gaps_longer_than_the_grace_period(app: Celery) -> None:
    seen = [SimpleNamespace(gap=40.0)]

    def level() -> str:
        [found] = doctor._gaps(app, seen)  # type: ignore[arg-type]
        return found.level

    assert level() == "hint"
    app.conf.continuation_grace_period = 30
    assert level() == "problem"
    app.conf.continuation_grace_period = 60
    assert level() == "ok"


class Redis:
    """A server with these settings."""

    def __init__(self, **settings: str) -> None:
        self._settings = {name.replace("_", "-"): value for name, value in settings.items()}

    def info(self, section: str) -> dict[str, str]:
        return {"run_id": "1"}

    def config_get(self, name: str) -> dict[bytes, bytes]:
        if not self._settings:
            raise RuntimeError("unknown command 'CONFIG'")
        return {name.encode(): self._settings[name].encode()}


SAFE = {"maxmemory": "0", "maxmemory_policy": "noeviction", "save": "", "appendonly": "yes"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SAFE, [("redis of the store", "ok")]),
        ({**SAFE, "maxmemory": "99", "maxmemory_policy": "allkeys-lru"}, [("redis of the store: eviction", "problem")]),
        ({**SAFE, "maxmemory_policy": "allkeys-lru"}, [("redis of the store: eviction", "hint")]),
        ({**SAFE, "appendonly": "no"}, [("redis of the store: persistence", "problem")]),
        ({}, [("redis of the store", "hint")]),
    ],
)
def test_how_redis_is_set_up(settings: Any, expected: Any) -> None:
    found = doctor._redis_server("store", Redis(**settings), set())
    assert [(one.name, one.level) for one in found] == expected


def test_one_server_is_looked_at_once() -> None:
    seen: set[str] = set()
    assert list(doctor._redis_server("store", Redis(**SAFE), seen))
    assert not list(doctor._redis_server("broker", Redis(**SAFE), seen))


# -- the page


def test_the_page_names_every_command_and_option() -> None:
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", (DOCS / "shell.md").read_text(), flags=re.M | re.S))
    assert set(sections) == set(continuations.commands)
    for name, command in continuations.commands.items():
        for option in (one for param in command.params for one in param.opts if one.startswith("--")):
            assert f"`{option}" in sections[name], (name, option)


def test_the_page_names_every_key() -> None:
    text = (DOCS / "shell.md").read_text()
    record = Record(Fence(1, Status.RUNNING, "w/1.1/a"))
    for key in {*facts.whole("a", record), "rate", "left", "level", "name", "text", "promise", "action"}:
        assert f"`{key}`" in text, key
