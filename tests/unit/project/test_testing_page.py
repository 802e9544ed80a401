"""The examples of docs/testing.md run."""

from __future__ import annotations

import itertools
import re
import unittest
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_continuations import testing
from celery_continuations.testing import resumable

PAGE = Path(__file__).parents[3] / "docs" / "testing.md"
TEXT = PAGE.read_text()
SHOWN = re.findall(r"^```text\n(.*?)^```", TEXT, flags=re.M | re.S)


@pytest.fixture
def names(app: Celery, django_database: Any) -> dict[str, Any]:
    """All that the page defines, and what it uses."""
    reports: list[int] = []
    found: dict[str, Any] = {
        "app": app, "users": {}, "reports": reports, "send_report": reports.append, "__name__": "page",
    }  # fmt: skip
    for block in re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.M | re.S):
        exec(block, found)
    return found


@pytest.mark.parametrize("name", re.findall(r"^def (test_\w+)\(\)", TEXT, flags=re.M))
def test_the_tests_shown(names: dict[str, Any], name: str) -> None:
    names[name]()


def test_the_test_with_fixtures(names: dict[str, Any]) -> None:
    names["test_fixtures"](testing.assert_resumable, testing)


@pytest.mark.parametrize("name", ["ImportTest", "RegisterTest"])
def test_the_test_cases(names: dict[str, Any], name: str) -> None:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(names[name]).run(result)
    assert (result.testsRun, result.failures, result.errors) == (1, [], [])


def test_the_report_shown(task: Any) -> None:
    rows: list[str] = []

    def import_users(self: Any, emails: list[str]) -> None:
        for email in self.iterate("import", emails):
            rows.append(email)
        self.step("report", lambda: 1)

    emails = ["ann@example.org", "bob@example.org"]
    with pytest.raises(AssertionError) as caught:
        testing.assert_resumable(task(import_users, name="import_users"), emails, check=lambda: rows, setup=rows.clear)
    assert SHOWN[0] == f"AssertionError: {caught.value}\n"


def test_the_warning_shown(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Any) -> int:
        for _ in self.iterate("rows", range(5)):
            pass
        return 5

    runs = itertools.count()
    monkeypatch.setattr(resumable, "_now", lambda: next(runs) / 1.6)
    with pytest.warns(testing.UntriedWarning) as caught:
        testing.assert_resumable(task(load, name="load"))
    assert [f"UntriedWarning: {caught[0].message}\n"] == SHOWN[1:]
