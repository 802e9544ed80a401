"""The signatures on the reference pages are those of the code, and no public name lacks one."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest

import celery_continuations
from celery_continuations import conf, signals, sources, task, testing
from tests.signatures import REFERENCE, blocks, rendered

SHOWN = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in sorted(REFERENCE.glob("*.md"))
    for number, block in enumerate(blocks(path.read_text()))
]


@pytest.mark.parametrize("block", SHOWN)
def test_the_signatures_are_those_of_the_code(block: str) -> None:
    shown, expected = (ast.dump(ast.parse(one)) for one in (block, rendered(block)))
    assert shown == expected, "make signatures writes them"


def defined() -> dict[str, list[str]]:
    """Return the functions and classes of all pages, with the members of the classes."""
    nodes: list[Any] = [node for one in SHOWN for node in ast.parse(str(one.values[0])).body]
    return {
        node.name: [one.name for one in getattr(node, "body", []) if isinstance(one, ast.FunctionDef)]
        for node in nodes
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }


@pytest.mark.parametrize("module", [celery_continuations, sources, testing])
def test_every_public_name_is_there(module: Any) -> None:
    assert set(module.__all__) - {"__version__"} <= set(defined())


def test_the_decorator_takes_each_setting_of_a_task() -> None:
    stub = rendered("from celery_continuations import continuable\n\ndef continuable(): ...\n")
    last: Any = ast.parse(stub).body[-1]
    assert {one.arg for one in last.args.kwonlyargs} == set(conf._of_tasks())


def test_what_a_task_is_written_with_is_there() -> None:
    assert set(task._PUBLIC) <= set(defined()["AppTask"])


def test_the_signals_and_their_arguments() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (REFERENCE / "errors.md").read_text(), flags=re.M)
    shown = {name: set(re.findall(r"\w+", arguments)) for name, arguments in rows}
    assert shown == {name: getattr(signals, name).providing_args for name in signals.__all__}


def test_a_signature_that_is_wrong_is_noticed() -> None:
    stub = "from celery_continuations.sources import keys\n\ndef keys(): ...\n"
    assert rendered(stub).splitlines()[-1] == "def keys(mapping: Mapping[Key, Any]) -> Source[Key]: ..."
    with pytest.raises(AttributeError):
        rendered(stub.replace("keys", "no_such_thing"))
