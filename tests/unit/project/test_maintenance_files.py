"""The files for maintainers name things that exist: make targets, linters, lines of the support policy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.M))
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "RELEASING.md", ".github/workflows/ci.yml", ".ci/run"])
def test_the_make_targets_named_are_there(name: str) -> None:
    named = set(re.findall(r"(?:`|^|run: )make (\w+)", (ROOT / name).read_text(), flags=re.M))
    assert named
    assert named <= TARGETS


def test_make_help_names_every_target() -> None:
    assert set(re.findall(r'@echo "make (\w+) ', MAKEFILE)) == TARGETS - {"help", "servers", "clean"}


def test_the_workflow_runs_what_ci_runs() -> None:
    def targets(text: str) -> set[str]:
        return set(re.findall(r"(?:^|run: )make (\w+)", text, flags=re.M))

    assert targets(WORKFLOW.read_text()) == {"lint", "docs", "lines", "test"} == targets((ROOT / ".ci/run").read_text())


def test_the_workflow_runs_every_line() -> None:
    jobs: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    (command,) = (step["run"] for step in jobs["lines"]["steps"] if "run" in step)
    found = set()
    for one in jobs["lines"]["strategy"]["matrix"]["include"]:
        assert one["env"] == "py" + one["python"].replace(".", "")
        found |= set(command.partition("LINES=")[2].replace("${{ matrix.env }}", one["env"]).split(","))
    policy = re.search(r"^envlist = py\{(.*)\}-celery\{(.*)\}$", (ROOT / "tox.ini").read_text(), flags=re.M)
    assert policy
    pythons, celerys = (part.split(",") for part in policy.groups())
    assert found == {f"py{python}-celery{celery}" for python in pythons for celery in celerys}


def test_the_hooks_are_the_linters() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {re.sub(r" --(force-exclude|fix)", "", hook["entry"].removeprefix(".venv/bin/")) for hook in local["hooks"]}
    recipe = MAKEFILE.partition("\nlint:")[2].partition("\n\n")[0]
    assert hooks == {re.sub(r" --check| \.", "", one) for one in re.findall(r"\$\(BIN\)/(.*)", recipe)}
