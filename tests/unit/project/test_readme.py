"""The README's examples run, and it stays short."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from celery import Celery

from celery_continuations import ContinuableTask
from celery_continuations.testing import delivered
from tests.support.pages import anchors

ROOT = Path(__file__).parents[3]
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "demo.svg"

LINES, COLUMNS, WORDS, WORDS_IN_A_SENTENCE = 130, 100, 900, 18


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


def test_the_quickstart(app: Celery, worker: Any, users: Any, caplog: Any) -> None:
    sent: list[Any] = []
    names: dict[str, Any] = {"Subscriber": users}

    def send(newsletter: int, subscriber: Any, key: str) -> None:
        sent.append((newsletter, subscriber.username))
        if len(sent) == 1:
            worker.stop()

    names["send"] = send
    code = blocks()[1].replace("@shared_task", "@app.task")
    exec(code, {**names, "app": app, "ContinuableTask": ContinuableTask, "__name__": "readme"}, names)
    result = app.tasks["readme.send_newsletter"].delay(7)
    worker.deliver()
    key = str(users.objects.filter().first().pk)
    shown = "Interrupted at send:1234, 41 % (stopping)"
    assert shown in README.read_text()
    assert str(result.info) == shown.replace("1234", key).replace("41", "50")
    assert (result.progress.done, result.progress.total) == (1, 2)
    with caplog.at_level("INFO", "celery_continuations"):
        worker.drain()
    shown = "step send resumed from 1234"
    assert shown in README.read_text()
    assert shown.replace("1234", key) in caplog.text
    assert sent == [(7, "ann"), (7, "bob")]


def test_the_example_of_waiting() -> None:
    asked: list[Any] = []
    app = Celery("readme", broker="memory://", set_as_current=False)
    names: dict[str, Any] = {"app": app, "ContinuableTask": ContinuableTask, "send_mail": asked.append}
    (block,) = (one for one in blocks() if "def publish(" in one)
    exec(block.replace("@shared_task", "@app.task"), names)
    with delivered(approval={"by": "ann"}):
        assert names["publish"].apply((7,)).get() == "approved by ann"
    assert names["publish"].apply((7,)).get() == "not approved"
    assert asked == [7, 7]


def test_what_is_supported_is_what_tox_runs() -> None:
    rows = dict(re.findall(r"^\| (\w+) \| (\d.*) \|$", README.read_text(), flags=re.M))
    found = re.search(r"^envlist = py\{(.*)\}-celery\{(.*)\}$", (ROOT / "tox.ini").read_text(), flags=re.M)
    assert found
    pythons, celerys = ([f"{one[0]}.{one[1:]}" for one in part.split(",")] for part in found.groups())
    assert rows == {"Python": f"{pythons[0]} to {pythons[-1]}", "Celery": ", ".join(celerys)}


def test_the_commands_for_a_fresh_clone() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = set(re.findall(r"`make (\w+)`", README.read_text()))
    assert {"demo", "test"} <= named <= targets


def test_the_picture_of_the_demo() -> None:
    text = PICTURE.read_text()
    assert len(text) < 100_000
    shown = "".join(ElementTree.fromstring(text).itertext()).replace("\xa0", " ")
    for line in ("SIGTERM: the task was handed over", "Interrupted at import:", "All checks passed."):
        assert line in shown
    assert not re.search(r"url\(.?http|href=", text), "it must fetch nothing"


# -- its length


def outside_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```\n", "", text, flags=re.M | re.S)


def sentences(text: str) -> list[str]:
    """Return the sentences of paragraphs and lists: headings, tables and pictures have none."""
    lines = [line for line in outside_code(text).splitlines() if not re.match(r"#|\||!\[", line)]
    prose = re.sub(r"\]\([^)]*\)", "]", "\n".join(lines))
    paragraphs = re.split(r"\n\s*\n|\n(?= *(?:-|\d+\.) )", prose)
    found = [re.split(r"(?<=[.?!])[*`)\]]*\s+", re.sub(r"^ *(?:-|\d+\.) ", "", one)) for one in paragraphs]
    return [sentence for one in found for sentence in one if re.search(r"\w", sentence)]


def test_sentences_are_found() -> None:
    text = "# No sentence\n\nOne two. Three\nfour `a.b` [five](six.md): seven.\n\n- Eight.\n- Nine\n\n| no | no |\n"
    assert [len(one.split()) for one in sentences(text)] == [2, 5, 1, 1]


def test_the_readme_is_a_page() -> None:
    text = README.read_text()
    lines = text.splitlines()
    assert len(lines) <= LINES
    assert [line for line in lines if len(line) > COLUMNS] == []
    assert len(outside_code(text).split()) <= WORDS
    lengths = [len(one.split()) for one in sentences(text)]
    assert sum(lengths) / len(lengths) <= WORDS_IN_A_SENTENCE


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "RELEASING.md", "SECURITY.md", "example_project/README.md"],
)
def test_links_within_the_project_lead_somewhere(page: str) -> None:
    path = README.parent / page
    for target, anchor in re.findall(r"\]\((?!http)([^)#]+)#?([^)]*)\)", path.read_text()):
        assert (path.parent / target).exists(), target
        assert not anchor or anchor in anchors(path.parent / target), anchor
