"""What type checkers report of code that uses the package: mypy and pyright, each with and without celery-types.

Above each line that a checker reports, the files beside this one have a comment: ``# wrong:`` and the rules, by
checker.  ``mypy=attr-defined`` holds with and without celery-types, ``mypy+=`` with them alone, ``mypy-=`` without.
Everything else is right, and no checker may report it.  The types inferred are in the files too, as ``assert_type``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "celery_continuations"
FILES = sorted(path for path in HERE.glob("*.py") if path.name != Path(__file__).name)
WORK = Path(sys.prefix) / "typing"

MYPY_SETTINGS = """\
[mypy]
strict = True
python_version = 3.10
explicit_package_bases = True
[mypy-celery.*,kombu.*]
ignore_missing_imports = True
"""


class Report(NamedTuple):
    """What a checker says of a line."""

    file: str
    line: int
    rule: str


class Checker(NamedTuple):
    """A type checker, with or without celery-types."""

    name: str
    has_celery_types: bool

    def command(self, python: Path) -> list[str]:
        """Return the command that checks all files with what that interpreter has installed."""
        files = [path.name for path in FILES]
        tool = str(Path(sys.executable).with_name(self.name))
        if self.name == "pyright":
            return [tool, "--outputjson", "--pythonversion", "3.10", "--pythonpath", str(python), *files]
        cache = str(WORK / f"cache-{python.parents[1].name}")
        settings = ["--config-file", str(WORK / "mypy.ini"), "--cache-dir", cache, "--output", "json"]
        return [tool, *settings, "--python-executable", str(python), *files]

    def expected(self) -> set[Report]:
        """Read what the files say."""
        names = (self.name, f"{self.name}{'+' if self.has_celery_types else '-'}")
        return {
            Report(path.name, number, rule)
            for path in FILES
            for number, line in enumerate(path.read_text().splitlines(), 2)
            for name, rules in re.findall(r"(\w+[+-]?)=(\S+)", line.partition("# wrong: ")[2])
            if name in names
            for rule in rules.split(",")
        }

    def found(self, output: str) -> Iterator[Report]:
        """Read what the checker has printed."""
        if self.name == "pyright":
            for one in json.loads(output)["generalDiagnostics"]:
                if one["severity"] == "error":
                    yield Report(Path(one["file"]).name, one["range"]["start"]["line"] + 1, one.get("rule", "syntax"))
            return
        for one in map(json.loads, output.splitlines()):
            if one["severity"] == "error":
                yield Report(Path(one["file"]).name, one["line"], one["code"])

    def __str__(self) -> str:
        return f"{self.name} {'with' if self.has_celery_types else 'without'} celery-types"


def environment(name: str, left_out: set[str]) -> Path:
    """Make an environment with the packages of this one, and this package as a wheel installs it.

    Args:
        name: of its folder.
        left_out: files and folders among the installed packages.

    Returns:
        Its interpreter.
    """
    folder = WORK / name
    rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True)
    [installed] = folder.glob("lib/python*/site-packages")
    [here] = Path(sys.prefix).glob(f"lib/{installed.parent.name}/site-packages")
    for entry in here.iterdir():
        if entry.name not in left_out and not entry.name.startswith(("__editable__", PACKAGE.name)):
            (installed / entry.name).symlink_to(entry)
    copytree(PACKAGE, installed / PACKAGE.name)
    return folder / "bin" / "python"


def check(checkers: list[Checker]) -> list[str]:
    """Run the checkers side by side; return where they differ from what the files say."""
    stubs = {path.parts[0] for path in metadata.files("celery-types") or []}
    WORK.mkdir(exist_ok=True)
    (WORK / "mypy.ini").write_text(MYPY_SETTINGS)
    pythons = {True: environment("with", set()), False: environment("without", stubs)}
    runs: list[tuple[Checker, Any]] = []
    for checker in checkers:
        command = checker.command(pythons[checker.has_celery_types])
        quiet = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
        runs.append((checker, subprocess.Popen(command, cwd=HERE, env=quiet, stdout=subprocess.PIPE, text=True)))
    problems = []
    for checker, process in runs:
        output, _ = process.communicate()
        if process.returncode not in (0, 1):
            problems.append(f"{checker}: ended with {process.returncode}: {output}")
            continue
        expected, found = checker.expected(), set(checker.found(output))
        problems += [f"{one.file}:{one.line}: {checker} reports {one.rule}" for one in sorted(found - expected)]
        problems += [f"{one.file}:{one.line}: {checker} misses {one.rule}" for one in sorted(expected - found)]
    return problems


def main() -> int:
    """Print where the checkers differ from what the files say."""
    problems = check([Checker(name, has) for name in ("mypy", "pyright") for has in (True, False)])
    print("\n".join(sorted(problems)) or "The type checkers report what tests/typing says.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
