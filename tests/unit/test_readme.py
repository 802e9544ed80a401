"""What the README shows is run."""

from __future__ import annotations

import re
import textwrap
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_continuations import ContinuableTask, conf
from celery_continuations.testing import delivered

README = Path(__file__).parents[2] / "README.md"


def blocks() -> list[str]:
    text = README.read_text()
    found = re.findall(r"^( *)```python\n(.*?)^ *```", text, flags=re.M | re.S)
    return [textwrap.dedent(block) for _, block in found]


@pytest.fixture
def users(django_database: Path) -> Any:
    """Stand in for a model of the reader's, with two users."""
    from django.contrib.auth.models import User

    for name in ("ann", "bob"):
        User.objects.create(username=name)
    return SimpleNamespace(objects=SimpleNamespace(filter=lambda **_: User.objects.filter(is_active=True)))


def test_the_first_example(tmp_path: Path, users: Any) -> None:
    done: list[Any] = []
    names: dict[str, Any] = {
        "validate": done.append, "upsert_users": lambda rows: done.append(len(rows)), "User": users,
        "send_welcome": lambda user, key: done.append((user.username, key)),
    }  # fmt: skip
    exec(blocks()[0], names)
    path = tmp_path / "users.csv"
    path.write_text("name\n" + "ann\n" * 1200)
    names["import_users"](str(path))
    *rest, ann, bob = done
    assert rest == [str(path), 500, 500, 200]
    assert [ann[0], bob[0]] == ["ann", "bob"]
    assert ann[1] != bob[1]


def test_the_first_task(app: Celery, worker: Any, users: Any) -> None:
    sent: list[Any] = []
    names: dict[str, Any] = {"Subscriber": users}

    def send(newsletter: int, subscriber: Any, key: str) -> None:
        sent.append((newsletter, subscriber.username))
        if len(sent) == 1:
            worker.stop()

    names["send"] = send
    code = blocks()[1].replace("from celery import shared_task", "").replace("@shared_task", "@app.task")
    exec(code, {**names, "app": app, "__name__": "readme"}, names)
    result = app.tasks["readme.send_newsletter"].delay(7)
    worker.deliver()
    key = str(users.objects.filter().first().pk)
    shown = "Interrupted at send:1234, 41 % (stopping)"
    assert shown in README.read_text()
    assert str(result.info) == shown.replace("1234", key).replace("41", "50")
    assert (result.progress.done, result.progress.total) == (1, 2)
    worker.drain()
    assert sent == [(7, "ann"), (7, "bob")]


def test_the_example_of_waiting() -> None:
    asked: list[Any] = []
    app = Celery("readme", broker="memory://", set_as_current=False)
    app.conf.continuation_callback_url = "https://example.com/callbacks"
    app.conf.continuation_callback_secret = "only a test, of 32 characters or more"

    def render(issue: int, page: int) -> int:
        return page

    names: dict[str, Any] = {
        "app": app, "ContinuableTask": ContinuableTask, "timedelta": timedelta,
        "send_mail": lambda *args: asked.append(args), "render": app.task(name="render")(render),
    }  # fmt: skip
    (block,) = (one for one in blocks() if "def publish(" in one)
    exec(block, names)
    with delivered(approval={"by": "ann"}):
        assert names["publish"].apply((7,)).get() == "3 pages, approved by ann"
    assert names["publish"].apply((7,)).get() == "nobody has approved"
    assert asked[0][0] == 7


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `continuation_(\w+)` \| (.*?) \|", README.read_text(), flags=re.M))
    rows.pop("store_is_chosen", None)
    assert set(rows) == set(conf.SETTINGS)
    shown = {
        "store": '`"auto"`', "namespace": "app name and broker", "max_runtime": '`"auto"`', "resume_options": "`{}`",
        "renamed_steps": "`{}`",
        "on_change": '`"fail"`',
        "max_snapshot": "256 KiB", "keep_failed": "30 days",
        "callback_expires": "7 days", "callback_max_body": "64 KiB",
    }  # fmt: skip
    for name, setting in conf.SETTINGS.items():
        assert rows[name] == shown.get(name, str(setting.default)), name


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "example_project/README.md"])
def test_links_within_the_project_lead_somewhere(page: str) -> None:
    path = README.parent / page
    for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target
