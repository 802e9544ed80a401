"""The examples on the pages run, and the site builds without a warning."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import unittest
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
from celery import Celery

from celery_continuations import ContinuableTask, conf
from celery_continuations.testing import assert_resumable

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

# Pages whose examples need a setting or a worker: the test that runs them.
RUN_ELSEWHERE = {
    "waiting.md": "test_waiting_page.py",
}

# Examples that need the reader's own code or a later feature: their first line, and why they are not run.
NOT_RUN: dict[tuple[str, str], str] = {}
if "upgrade_from" not in inspect.signature(assert_resumable).parameters:
    NOT_RUN["howto/deploys.md", "from celery_continuations.testing import assert_resumable"] = (
        "upgrade_from= is to come"
    )

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
    if name_of(page) == "callbacks.md":
        monkeypatch.setenv("CALLBACK_SECRET", "only a test, of 32 characters or more")
        monkeypatch.setitem(sys.modules, "proj", SimpleNamespace(app=app))
        names.update(ContinuableTask=ContinuableTask, os=os, flask_app=SimpleNamespace(wsgi_app=None))
    for language, block in fences(page):
        if language == "python" and (name_of(page), block.splitlines()[0]) not in NOT_RUN:
            exec(compile(block, str(page), "exec", dont_inherit=True), names)
    if "test_the_upgrade" in names:
        names["test_the_upgrade"]()


def test_what_is_not_run_here_is_there() -> None:
    for page, test in RUN_ELSEWHERE.items():
        assert f'"{page}"' in (Path(__file__).parent / test).read_text()
    firsts = {(name_of(page), block.partition("\n")[0]) for page in PAGES for _, block in fences(page)}
    assert set(NOT_RUN) <= firsts


def test_the_table_of_settings_is_that_of_the_code() -> None:
    rows = re.findall(
        r"^\| `continuation_(\w+)` \| `(.*?)` \| (.+?) \| (.*) \|$",
        (DOCS / "reference/settings.md").read_text(),
        re.M,
    )
    found = [(name, default, allowed) for name, default, _, allowed in rows]
    assert found == [(name, repr(one.default), one.allowed) for name, one in conf.SETTINGS.items()]


class Links(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a" and given.get("href"):
            self.links.add(str(given["href"]))
        if given.get("id"):
            self.anchors.add(str(given["id"]))


def test_the_site_is_built_without_a_warning_and_no_link_in_it_is_dead(tmp_path: Path) -> None:
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason="the extra docs is not installed")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(tmp_path / "trees")]
    done = subprocess.run([*command, str(DOCS), str(tmp_path / "html")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path: Links(path) for path in (tmp_path / "html").rglob("*.html")}
    assert len(pages) > len(PAGES)
    for path, page in pages.items():
        for link in page.links:
            target, _, anchor = unquote(link).partition("#")
            if re.match(r"\w+:", target):
                continue
            found = (path.parent / target).resolve() if target else path
            assert found.is_file(), f"{path.name}: {link}"
            assert not anchor or found not in pages or anchor in pages[found].anchors, f"{path.name}: {link}"


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
