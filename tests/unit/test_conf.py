"""Settings: where they are read from, and what is refused."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_continuations import ContinuableTask, conf
from tests.support.worker import make_app


@pytest.fixture(autouse=True, scope="module")
def no_app_is_left() -> Iterator[None]:
    """A shared task of a later test would be made in each app that is still there, wrong settings and all."""
    yield
    gc.collect()


def body(self: Any) -> None:
    pass


BAD = [
    ("continuation_store", ""),
    ("continuation_store", 5),
    ("continuation_store", "rediss"),
    ("continuation_store", "db+mysql://localhost/x"),
    ("continuation_store", "nope"),
    ("continuation_should_interrupt", "no.such:thing"),
    ("continuation_should_interrupt", "package."),
    ("continuation_namespace", ""),
    ("continuation_checkpoint_interval", -1),
    ("continuation_checkpoint_interval", "1"),
    ("continuation_checkpoint_interval", True),
    ("continuation_max_runtime", 0),
    ("continuation_max_runtime", timedelta(0)),
    ("continuation_max_runtime", "often"),
    ("continuation_should_interrupt", 5),
    ("continuation_should_interrupt", "nodot"),
    ("continuation_max_resumptions", -1),
    ("continuation_max_resumptions", 1.5),
    ("continuation_resume_options", []),
    ("continuation_resume_errors_after_advancing", 1),
    ("continuation_resume_error_countdown", None),
    ("continuation_max_snapshot", 0),
    ("continuation_keep_failed", 0),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_wrong_value_is_refused_when_the_app_is_finalized(name: str, value: Any) -> None:
    app = make_app()
    app.conf[name] = value
    app.task(base=ContinuableTask, bind=True, name="any")(body)
    with pytest.raises(ImproperlyConfigured) as caught:
        app.finalize()
    assert str(caught.value).startswith(f"{name} = {value!r} is not allowed; it takes ")


@pytest.mark.parametrize(("name", "value"), [bad for bad in BAD if bad[0] != "continuation_namespace"])
def test_a_wrong_value_of_a_task_names_the_task(name: str, value: Any) -> None:
    app = make_app()
    app.task(base=ContinuableTask, bind=True, name="any", **{name: value})(body)
    with pytest.raises(ImproperlyConfigured, match="of task any is not allowed"):
        app.finalize()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("continuation_callback_url", ""),
        ("continuation_callback_url", "example.com/callbacks"),
        ("continuation_callback_url", "ftp://example.com"),
        ("continuation_callback_url", "https://example.com/?token="),
        ("continuation_callback_expires", 0),
        ("continuation_callback_expires", float("inf")),
        ("continuation_callback_max_body", 0),
    ],
)
def test_a_wrong_value_of_callbacks_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        conf.validate(make_app(**{name: value}))
    assert str(caught.value).startswith(f"{name} = {value!r} is not allowed; it takes ")


SECRET = "0123456789abcdef" * 2


@pytest.mark.parametrize("value", ["", SECRET[1:], [], [SECRET, SECRET[1:]], SECRET.encode(), {SECRET: 1}])
def test_a_wrong_secret_is_refused_and_not_shown(value: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="^continuation_callback_secret = .not shown. is not allowed; it"):
        conf.validate(make_app(continuation_callback_secret=value))


@pytest.mark.parametrize("value", [None, SECRET, [SECRET, SECRET.upper()], (SECRET,)])
def test_secrets(value: Any) -> None:
    conf.validate(make_app(continuation_callback_secret=value))


def test_celerys_report_hides_the_secret() -> None:
    app = make_app(continuation_callback_secret=[SECRET])
    assert "continuation_callback_secret" in app.bugreport()
    assert SECRET not in app.bugreport()


def test_an_unknown_setting_is_refused() -> None:
    app = make_app(continuation_max_resumption=5)
    app.task(base=ContinuableTask, bind=True, name="any")(body)
    with pytest.raises(ImproperlyConfigured, match="unknown setting continuation_max_resumption; known are: contin"):
        app.finalize()


@pytest.mark.parametrize("name", ["continuation_max_resumption", "continuation_namespace"])
def test_an_attribute_of_a_task_that_is_not_a_setting_is_refused(name: str) -> None:
    app = make_app()
    app.task(base=ContinuableTask, bind=True, name="any", **{name: "x"})(body)
    with pytest.raises(ImproperlyConfigured, match=f"unknown setting {name} of a task, as any has it; known are"):
        app.finalize()


def test_a_path_that_leads_nowhere_is_named() -> None:
    with pytest.raises(
        ImproperlyConfigured, match="continuation_should_interrupt = 'no.such' cannot be imported: No module"
    ):
        conf.predicate("no.such")
    with pytest.raises(ImproperlyConfigured, match="cannot be imported: module 'os' has no attribute 'such'"):
        conf.predicate("os.such")


def test_an_unknown_resume_option_is_refused() -> None:
    app = make_app(continuation_resume_options={"queue": "a", "task_id": "b"})
    app.task(base=ContinuableTask, bind=True, name="any")(body)
    with pytest.raises(ImproperlyConfigured, match=r"continuation_resume_options\['task_id'\] is not allowed; known"):
        app.finalize()


def test_message_protocol_1_is_refused_for_a_task_with_steps() -> None:
    app = make_app(task_protocol=1)
    app.task(base=ContinuableTask, bind=True, name="any")(body)
    app.finalize()
    with pytest.raises(ImproperlyConfigured, match="task_protocol = 1: task any has steps, which need"):
        conf.refuse_protocol(app, "any")


def test_django_like_namespaces() -> None:
    app = Celery(set_as_current=False)
    app.config_from_object({"CELERY_CONTINUATION_MAX_RESUMPTIONS": 7}, namespace="CELERY")
    made = app.task(base=ContinuableTask, bind=True, name="any", shared=False)(body)
    assert conf.setting(made, "max_resumptions") == 7


def test_a_setting_of_the_task_its_class_the_app_and_the_default() -> None:
    app = make_app(continuation_max_resumptions=7)

    class Base(ContinuableTask):
        abstract = True
        continuation_max_snapshot = 5000

    plain = app.task(base=Base, bind=True, name="plain")(body)
    own = app.task(base=Base, bind=True, name="own", continuation_max_resumptions=1)(body)
    assert conf.setting(plain, "max_resumptions") == 7
    assert conf.setting(own, "max_resumptions") == 1
    assert conf.setting(own, "max_snapshot") == 5000
    assert conf.setting(own, "checkpoint_interval") == 1.0


def test_namespaces_tell_services_apart() -> None:
    one = Celery("one", broker="redis://localhost:6379/0", set_as_current=False)
    same = Celery("one", broker="redis://127.0.0.1:6379/0", set_as_current=False)
    other_app = Celery("two", broker="redis://localhost:6379/0", set_as_current=False)
    other_broker = Celery("one", broker="redis://localhost:6379/1", set_as_current=False)
    named = Celery("one", broker="redis://", set_as_current=False)
    named.conf.continuation_namespace = "mine"
    assert conf.namespace(one) == conf.namespace(same)
    assert len({conf.namespace(app) for app in (one, other_app, other_broker, named)}) == 4
    assert conf.namespace(named) == "mine"


def test_tombstones_outlive_every_late_delivery() -> None:
    assert conf.tombstone_seconds(make_app()) == 86400
    assert conf.tombstone_seconds(make_app(result_expires=None)) == 86400
    assert conf.tombstone_seconds(make_app(result_expires=timedelta(days=9))) == 9 * 86400
    assert conf.tombstone_seconds(make_app(broker_transport_options={"visibility_timeout": 86400})) == 2 * 86400


def test_a_path_is_looked_for_in_the_folder_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Celery does for an app: its command has that folder on no path."""
    (tmp_path / "only_here.py").write_text("def is_late(task):\n    return 'late'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one not in ("", os.getcwd())])
    assert conf.predicate("only_here.is_late")(None) == "late"
    assert str(tmp_path) not in sys.path
