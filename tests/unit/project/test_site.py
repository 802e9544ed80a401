"""The examples on the pages run."""

from __future__ import annotations

import os
import re
import sys
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from flask import Flask

from celery_continuations import ContinuableTask, conf
from tests.support import web

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

# Pages whose examples need a setting or a worker: the test that runs them.
RUN_ELSEWHERE = {
    "waiting.md": "test_waiting_page.py",
    "howto/webhooks.md": "test_webhooks_page.py",
}

# Languages of blocks that are not run.
OTHER = {"pyi", "sh", "yaml", "ini", "text", "json", "{toctree}", "{include} ../CHANGELOG.md", "{eval-rst}", ""}


def fences(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(.*)\n((?:.*\n)*?)```$", page.read_text(), flags=re.M)


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


def pages_to_run() -> list[Any]:
    shown = [page for page in PAGES if any(language == "python" for language, _ in fences(page))]
    return [pytest.param(page, id=name_of(page)) for page in shown if name_of(page) not in RUN_ELSEWHERE]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_of_a_known_language(page: Path) -> None:
    assert {language for language, _ in fences(page)} <= OTHER | {"python"}
    assert len(re.findall(r"^ *```", page.read_text(), flags=re.M)) == 2 * len(fences(page)), "a block is not closed"


@pytest.mark.usefixtures("own_tasks")
@pytest.mark.parametrize("page", pages_to_run())
def test_the_examples_of_a_page(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The examples run one after another, in the order of the page, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    app = Celery("page", broker="memory://", set_as_current=False)
    names: dict[str, Any] = {"__name__": f"site.{page.stem}", "app": app}
    if "from django.contrib" in page.read_text():
        request.getfixturevalue("django_database")
    monkeypatch.setenv("CALLBACK_SECRET", "only a test, of 32 characters or more")
    if name_of(page) == "callbacks.md":
        monkeypatch.setitem(sys.modules, "proj", SimpleNamespace(app=app))
        web.stand_in()
        names.update(ContinuableTask=ContinuableTask, os=os, flask_app=Flask("web"), api=web.FastAPI())
    for language, block in fences(page):
        if language == "python":
            exec(compile(block, str(page), "exec", dont_inherit=True), names)
    if "test_the_upgrade" in names:
        names["test_the_upgrade"]()


def test_what_is_not_run_here_is_there() -> None:
    for page, test in RUN_ELSEWHERE.items():
        assert f'"{page}"' in (Path(__file__).parent / test).read_text()


def test_the_table_of_settings_is_that_of_the_code() -> None:
    rows = re.findall(
        r"^\| `continuation_(\w+)` \| `(.*?)` \| (.+?) \| (.*) \|$",
        (DOCS / "reference/settings.md").read_text(),
        re.M,
    )
    found = [(name, default, allowed) for name, default, _, allowed in rows]
    assert found == [(name, repr(one.default), one.allowed) for name, one in conf.SETTINGS.items()]


def test_every_public_module_of_sources_and_testing_has_its_place_in_the_reference() -> None:
    told = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    for module in ("base", "combinators", "django", "files", "ordered", "paged", "sqlalchemy"):
        assert f"automodule:: celery_continuations.sources.{module}\n" in told
    for module in ("", ".sources", ".stores"):
        assert f"automodule:: celery_continuations.testing{module}\n" in told


def test_the_test_case_shown_for_django(django_database: Path) -> None:
    names: dict[str, Any] = {"__name__": "page", "app": Celery("page", broker="memory://", set_as_current=False)}
    blocks = [block for _, block in fences(DOCS / "django.md") if "TestCase" in block]
    for block in blocks:
        exec(compile(block, "django.md", "exec", dont_inherit=True), names)
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(names["DeactivateTest"]).run(result)
    assert (result.testsRun, result.failures, result.errors) == (1, [], [])
