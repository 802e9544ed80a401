"""The advice for Django in docs/testing.md, in test cases of Django and fixtures of pytest-django."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.exhaustive

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "testing.md").read_text()
ADVICE = next(
    block for block in re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S) if "RegisterTest" in block
)

SETTINGS = """
SECRET_KEY = "x"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
USE_TZ = True
"""

TASKS = """
from celery import Celery
from celery_continuations import ContinuableTask
from celery_continuations.testing import assert_resumable, rehearse, run_until_done

app = Celery("tasks", set_as_current=False)
"""

TESTS = """
import pytest
from django.contrib.auth.models import Group
from django.db import models, transaction
from django.test import TestCase, TransactionTestCase

hooks = []


@app.task(base=ContinuableTask, bind=True)
def promote(self, times):
    for user in self.iterate("users", User.objects.order_by("pk"), transaction="default"):
        User.objects.filter(pk=user.pk).update(first_name=user.first_name + "!" * times)
        with transaction.atomic():
            Group.objects.create(name=user.username)
        transaction.on_commit(lambda name=user.username: after(name))


@app.task(base=ContinuableTask, bind=True)
def increment(self):
    for user in self.iterate("users", User.objects.order_by("pk")):
        User.objects.filter(pk=user.pk).update(first_name=user.first_name + "!")


errors = []


def after(name):
    if errors and name == "bob":
        raise errors.pop()
    if name not in hooks:
        hooks.append(name)


def setup():
    hooks.clear()
    Group.objects.all().delete()
    User.objects.all().delete()
    User.objects.bulk_create(User(username=name) for name in ("ann", "bob", "eve"))


def users():
    return User.objects.order_by("pk")


def check():
    return [users(), list(Group.objects.order_by("name")), hooks]


class Proofs:
    runs_hooks = True

    def test_right(self):
        assert_resumable(promote, 1, setup=setup, check=check, pairs=10)
        assert [user.first_name for user in users()] == ["!", "!", "!"]
        assert hooks == (["ann", "bob", "eve"] if self.runs_hooks else [])

    def test_doubled(self):
        for check in (users, lambda: list(users()), lambda: users().values("first_name")):
            with pytest.raises(AssertionError, match="killed at place 1 of 5"):
                assert_resumable(increment, setup=setup, check=check, pairs=10)

    def test_hook_that_fails(self):
        setup()
        errors[:] = [ConnectionError("once")]
        run = rehearse(promote, 1)
        if self.runs_hooks:
            assert (run.state, run.cursor) == ("RETRY", users()[1].pk)
            run_until_done(run)
            assert hooks == ["ann", "eve"]
        assert (run.state, [user.first_name for user in users()]) == ("SUCCESS", ["!", "!", "!"])


class TestOfDjango(Proofs, TestCase):
    runs_hooks = False


class TestWithTransactions(Proofs, TransactionTestCase):
    pass
"""

OF_PYTEST = """
@pytest.mark.django_db
class TestDb(Proofs):
    runs_hooks = False


@pytest.mark.django_db(transaction=True)
class TestTransactionalDb(Proofs):
    pass


def test_fixture(db, assert_resumable):
    assert_resumable(register, ["ann", "bob"], setup=User.objects.all().delete, check=users)
"""


def run(path: Path, text: str, *plugins: str) -> str:
    """Run tests there in a process of their own; return what pytest prints."""
    (path / "settings.py").write_text(SETTINGS)
    (path / "test_tasks.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error::pytest.PytestWarning"]
    done = subprocess.run(
        [*command, *(f"-p{name}" for name in ("celery_continuations.pytest_plugin", *plugins)), str(path)],
        cwd=path,
        env={
            "PYTHONPATH": f"{ROOT}:{path}",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "DJANGO_SETTINGS_MODULE": "settings",
            "PATH": "",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.stdout + done.stderr


def test_with_pytest_django(tmp_path: Path) -> None:
    pytest.importorskip("pytest_django")
    printed = run(tmp_path, TASKS + ADVICE + TESTS + OF_PYTEST, "django")
    assert "14 passed" in printed, printed


def test_with_djangos_runner(tmp_path: Path) -> None:
    """The same test cases, where pytest-django is not installed."""
    (tmp_path / "settings.py").write_text(SETTINGS)
    (tmp_path / "test_tasks.py").write_text(TASKS + ADVICE + TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "django", "test", "--verbosity", "0"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "DJANGO_SETTINGS_MODULE": "settings", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "Ran 7 tests" in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
