"""The names in the documentation exist, and everything public is documented."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from celery import signals as celery_signals
from celery.app import defaults

import celery_continuations
from celery_continuations import conf, exceptions
from celery_continuations import signals as our_signals
from celery_continuations.execution import reporting
from celery_continuations.messages import headers
from tests.support.pages import anchors, prose

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "celery_continuations"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
ALARMS = ROOT / "docs" / "deployment" / "alarms.md"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

# Not in every Celery version that the tests run on.
OF_A_LATER_CELERY = {"worker_disable_prefetch", "worker_cancel_long_running_tasks_on_connection_loss"}


def sources() -> dict[Path, str]:
    return {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def code(text: str) -> list[str]:
    """Return the code in backquotes."""
    return re.findall(r"`([^`\n]+)`", prose(text))


# -- links


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        found = (page.parent / target).resolve() if target else page
        assert found.is_file(), link
        assert not anchor or anchor in anchors(found), link


# -- settings

# Headers and a table, whose names begin as settings do.
NO_SETTINGS = {
    headers.GENERATION, headers.CHANGED, headers.PARENT, headers.AWAITED, "continuation_record",
    "continuation_traceparent",
}  # fmt: skip


@every_page
def test_the_settings_named_are_settings(page: Path) -> None:
    known = {conf.PREFIX + name for name in conf.SETTINGS} | NO_SETTINGS
    named = set(re.findall(r"\bcontinuation_\w+", page.read_text()))
    assert named <= known


@every_page
def test_celerys_settings_are_celerys(page: Path) -> None:
    known = _celerys()
    words = {word for text in code(page.read_text()) for word in re.findall(r"^\w+(?= = |$)", text)}
    named = {word for word in words if re.match(r"(worker|broker|task|result|redis|database)_", word)}
    assert named <= known | set(dir(celery_signals)) | set(our_signals.__all__) | {"task_id", "task_name"}


def _celerys() -> set[str]:
    return {name for name, _ in defaults.flatten(defaults.NAMESPACES)} | OF_A_LATER_CELERY


@every_page
def test_errors_named_are_errors(page: Path) -> None:
    named = {text for text in code(page.read_text()) if re.fullmatch(r"[A-Z]\w+Error", text)}
    assert named <= set(exceptions.__all__) | set(dir(builtins))


# -- code


def python_blocks() -> Iterator[Any]:
    for page in PAGES:
        for number, block in enumerate(blocks(page.read_text(), "python")):
            yield pytest.param(block, id=f"{page.name}-{number}")


@pytest.mark.parametrize("block", list(python_blocks()))
def test_python_compiles_and_sets_what_there_is(block: str) -> None:
    tree = ast.parse(block)
    compile(tree, "docs", "exec")
    known = _celerys() | {conf.PREFIX + name for name in conf.SETTINGS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "conf":
            assert node.attr in known | {"update"}
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("conf.update"):
            assert {keyword.arg for keyword in node.keywords} <= known
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("celery_continuations"):
            module = import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_yaml_is_yaml() -> None:
    yaml = pytest.importorskip("yaml")
    for page in PAGES:
        for block in blocks(page.read_text(), "yaml"):
            assert list(yaml.safe_load_all(block))


def test_the_filter_of_interruptions() -> None:
    names: dict[str, Any] = {}
    exec(blocks(ALARMS.read_text(), "python")[0], names)
    shown = repr(celery_continuations.Interrupted("rows", 1, "stopping"))
    assert names["is_interruption"]({"type": "task-retried", "exception": shown})
    assert not names["is_interruption"]({"type": "task-retried", "exception": "ValueError('x')"})
    assert not names["is_interruption"]({"type": "task-failed", "exception": shown})


# -- the protocol's rules


def test_the_rules_of_the_protocol_are_those_of_the_source() -> None:
    explained = re.findall(r"^\*\*Rule (\d+)\.", (ROOT / "docs" / "protocol.md").read_text(), flags=re.M)
    marked = {number for text in sources().values() for number in re.findall(r"# Rule (\d+)\b", text)}
    assert len(explained) == len(set(explained))
    assert explained == sorted(marked, key=int)


@every_page
def test_rules_are_referred_to_by_numbers_that_there_are(page: Path) -> None:
    marked = {number for text in sources().values() for number in re.findall(r"# Rule (\d+)\b", text)}
    for found in re.findall(r"\brules? (\d+(?:(?:, | and )\d+)*)", page.read_text(), flags=re.I):
        assert set(re.findall(r"\d+", found)) <= marked


# -- log records


def actions() -> set[str]:
    """Return every ``action`` of a log record that can be read from the source."""
    found = set(reporting._STEP_MESSAGES)  # the one place where it is a variable
    trees = [ast.parse(text) for text in sources().values()]
    takes = {
        function.name: names.index("action")
        for tree in trees
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and "action" in (names := [one.arg for one in function.args.args if one.arg != "self"])
    }
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Dict):
            given = [value for key, value in zip(node.keys, node.values, strict=True) if _is(key, "action")]
        elif isinstance(node, ast.Call) and (name := ast.unparse(node.func).rpartition(".")[2]) in takes:
            if ast.unparse(node.func).startswith(("logger.", "celery_internals.")):
                continue
            given = node.args[takes[name] :][:1]
        else:
            continue
        for value in given:
            if isinstance(value, ast.Constant):
                found.add(value.value)
            else:
                assert ast.unparse(value) in ("action", "event"), f"an action that this test cannot see: {value.lineno}"
    return found


def _is(key: ast.expr | None, text: str) -> bool:
    return isinstance(key, ast.Constant) and key.value == text


def rows(heading: str) -> list[list[str]]:
    """The first table under a heading of alarms.md."""
    lines = ALARMS.read_text().partition(heading)[2].partition("|---")[2].partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_action_is_in_the_alarms_and_no_other() -> None:
    listed = [row[0].strip("`") for row in rows("## Log records")]
    assert len(listed) == len(set(listed))
    assert set(listed) == actions()


def test_the_levels_are_those_of_the_actions() -> None:
    levels = {"DEBUG", "INFO", "WARNING", "ERROR"}
    for row in rows("## Log records"):
        assert set(re.findall(r"[A-Z]{4,}", row[1])) <= levels, row


def test_the_filter_wants_actions_that_there_are() -> None:
    names: dict[str, Any] = {}
    exec(blocks(ALARMS.read_text(), "python")[1], names)
    assert names["WANTED"] <= actions()


# -- tests


@every_page
def test_tests_named_are_tests(page: Path) -> None:
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", page.read_text()):
        assert f"def {name}(" in written, name
