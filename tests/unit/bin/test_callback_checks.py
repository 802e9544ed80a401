"""``doctor`` finds settings of callbacks that let strangers deliver, and shows no secret."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_continuations.bin import doctor
from celery_continuations.bin.callback_checks import are_used, problems
from tests.support.worker import make_app

ROOT = Path(__file__).parents[3]


def configured(url: str | None = "https://example.com/callbacks", secret: Any = None) -> Celery:
    secret = secrets.token_urlsafe(32) if secret is None else secret
    return make_app(continuation_callback_url=url, continuation_callback_secret=secret)


def of_doctor(app: Celery) -> list[tuple[str, str]]:
    return [(one.level, one.text) for one in doctor.examine(app) if one.name in ("callbacks", "settings")]


def published() -> set[str]:
    """Return the secrets in the documentation, the example and the docstrings."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "example_project").rglob("*.py")]
    pages += (ROOT / "celery_continuations").rglob("*.py")
    pattern = re.compile(r"CALLBACK_SECRET([^\n]+)", re.I)
    texts = (
        text for page in pages for line in pattern.findall(page.read_text()) for text in re.findall('"(.+?)"', line)
    )
    return {text for text in texts if len(text) >= 32}


def test_the_secrets_that_are_published_are_known() -> None:
    found = published()
    assert "only an example, of 32 characters or more" in found
    for text in (*found, "only for an example on one's own machine", "a secret of 32 characters or more"):
        assert list(problems(configured(secret=text))), text


@pytest.mark.parametrize(
    "secret",
    [
        "x" * 32,
        "0" * 64,
        "abcabcabc" * 5,
        "secret" * 6,
        "CHANGE ME, CHANGE ME, CHANGE ME, NOW",
        "my-production-password-2024-06-01",
    ],
)
@pytest.mark.parametrize("place", ["alone", "first", "second"])
def test_a_secret_that_can_be_guessed(secret: str, place: str) -> None:
    sound = secrets.token_urlsafe(32)
    value = {"alone": secret, "first": [secret, sound], "second": (sound, secret)}[place]
    (found,) = of_doctor(configured(secret=value))
    assert found[0] == "problem"
    named = {"alone": "", "first": "[0]", "second": "[1]"}[place]
    assert found[1].startswith(f"continuation_callback_secret{named} can be guessed: ")
    assert secret not in found[1]


def test_a_secret_that_is_too_short_is_not_shown() -> None:
    ((level, text),) = of_doctor(configured(secret="short and known"))
    assert level == "problem"
    assert (
        "continuation_callback_secret = (not shown) is not allowed; it takes a secret, a str of 32 characters" in text
    )
    assert "short and known" not in text


@pytest.mark.parametrize("make", [secrets.token_urlsafe, secrets.token_hex])
def test_random_ones_are_accepted(make: Any) -> None:
    for _ in range(300):
        assert not list(problems(configured(secret=make(32))))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.com/callbacks", None),
        ("http://127.0.0.1:8000/callbacks", None),
        ("http://127.8.0.1/callbacks", None),
        ("http://[::1]:8000/callbacks", None),
        ("http://localhost/callbacks", None),
        ("http://web.localhost/callbacks", None),
        ("http://example.com/callbacks", "http://example.com"),
        ("http://web:8000/callbacks", "http://web"),
        ("http://10.0.0.1/callbacks", "http://10.0.0.1"),
        ("http://127.0.0.1.example.com/callbacks", "http://127.0.0.1.example.com"),
        ("http://localhost.example.com/callbacks", "http://localhost.example.com"),
        ("https://svc:pass@example.com/callbacks", "a user or a password"),
    ],
)
def test_the_address(url: str, said: str | None) -> None:
    found = list(problems(configured(url)))
    assert len(found) == (said is not None)
    assert said is None or said in found[0]
    assert "svc" not in str(found)


def test_a_secret_that_is_missing() -> None:
    app = make_app(continuation_callback_url="https://example.com/callbacks")
    assert are_used(app)
    (found,) = problems(app)
    assert "continuation_callback_secret is not" in found


def test_itsdangerous_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert list(problems(configured())) == ["itsdangerous is missing: pip install 'celery-continuations[callbacks]'."]


def test_nothing_is_said_where_callbacks_are_not_used() -> None:
    assert of_doctor(make_app()) == []


def test_the_example_makes_a_secret_that_its_processes_share(tmp_path: Path) -> None:
    code = "import proj.settings as s; print(s.continuation_callback_secret)"
    environ = {**os.environ, "AIRPORTS_FOLDER": str(tmp_path), "PYTHONPATH": str(ROOT / "example_project")}
    environ.pop("AIRPORTS_SECRET", None)
    command = [sys.executable, "-c", "import sys, types; sys.modules['proj'] = m = types.ModuleType('proj'); "
               f"m.__path__ = [{str(ROOT / 'example_project' / 'proj')!r}]; {code}"]  # fmt: skip
    running = [subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    found = {process.communicate(timeout=60)[0].strip() for process in running}
    (secret,) = found
    assert not list(problems(configured(secret=secret)))
    assert (tmp_path / "callback_secret").stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.glob("callback_secret*"))) == 1
