"""The signatures in ``docs/reference``: ``make signatures`` writes them as the code has them.

A page shows them in ``pyi`` blocks, so that a reader finds them where Markdown is all that is shown.  What a block
names is written by hand: the imports, and ``def step(): ...``.  The rest is filled in.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"

COLUMNS = 100


def blocks(page: str) -> list[str]:
    """Return the stubs of a page."""
    return re.findall(r"^```pyi\n(.*?)^```", page, flags=re.M | re.S)


def rendered(block: str) -> str:
    """Return a stub that names the same things, with the signatures of the code.

    Raises:
        AttributeError: when it names something that the code does not have.
    """
    modules: dict[str, str] = {}
    parts: list[str] = []
    for node in _once(ast.parse(block).body):
        if isinstance(node, ast.ImportFrom):
            modules.update({alias.name: str(node.module) for alias in node.names})
            parts.append(_import(node))
        elif isinstance(node, ast.ClassDef):
            parts.append(_class(getattr(import_module(modules[node.name]), node.name), node))
        elif isinstance(node, ast.FunctionDef):
            parts.append(_function(getattr(import_module(modules[node.name]), node.name)))
        else:
            raise AttributeError(f"a stub has imports, classes and functions, not {ast.unparse(node)}")
    return "\n".join(parts) + "\n"


def _once(nodes: list[ast.stmt]) -> list[ast.stmt]:
    """Return the nodes of a stub; of overloads the first."""
    seen: dict[str, ast.stmt] = {}
    for node in nodes:
        seen.setdefault(getattr(node, "name", ast.unparse(node)), node)
    return list(seen.values())


def _import(node: ast.ImportFrom) -> str:
    line = ast.unparse(node)
    if len(line) <= COLUMNS:
        return line
    return "\n".join([f"from {node.module} import (", *(f"    {alias.name}," for alias in node.names), ")"])


def _tree(value: Any) -> Any:
    return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]


def _class(cls: Any, shown: ast.ClassDef) -> str:
    bases = ", ".join(map(ast.unparse, _tree(cls).bases))
    head = f"class {cls.__name__}{f'({bases})' if bases else ''}:"
    members = [_member(cls, _name_of(one)) for one in _once(shown.body) if not _is_ellipsis(one)]
    return "\n".join([head, *(textwrap.indent(one, "    ") for one in members)]) if members else f"{head} ..."


def _is_ellipsis(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _name_of(node: ast.stmt) -> str:
    if isinstance(node, ast.FunctionDef):
        return node.name
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.target)
    raise AttributeError(f"a class in a stub has methods and attributes, not {ast.unparse(node)}")


def _member(cls: Any, name: str) -> str:
    """Return a method, a property or an annotated attribute of a class or of a class above it."""
    for base in cls.__mro__:
        if base.__module__.startswith("celery_continuations"):
            body = _tree(base).body
            if any(isinstance(node, ast.FunctionDef) and node.name == name for node in body):
                return _signatures(body, name, indent=4)
            for node in body:
                if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
                    return f"{name}: {ast.unparse(node.annotation)}"
    raise AttributeError(f"{cls.__name__} has no {name}")


def _function(function: Any) -> str:
    found = inspect.unwrap(function)
    return _signatures(ast.parse(inspect.getsource(inspect.getmodule(found))).body, found.__name__)


def _signatures(body: list[ast.stmt], name: str, indent: int = 0) -> str:
    """Return the signature of a function, or those of its overloads."""
    found = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == name]
    return "\n".join(_signature(node, indent) for node in (found[:-1] or found))


def _signature(node: Any, indent: int = 0) -> str:
    before = [f"@{ast.unparse(one)}" for one in node.decorator_list]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    arguments = _arguments(node.args)
    line = f"def {node.name}({', '.join(arguments)}){returns}: ..."
    if indent + len(line) > COLUMNS:
        line = "\n".join([f"def {node.name}(", *(f"    {one}," for one in arguments), f"){returns}: ..."])
    return "\n".join([*before, line])


def _arguments(arguments: ast.arguments) -> list[str]:
    """Return the arguments one by one, with the ``/`` and the ``*`` between them."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    found = [_argument(*pair) for pair in zip(positional, defaults, strict=True)]
    if arguments.posonlyargs:
        found.insert(len(arguments.posonlyargs), "/")
    if arguments.vararg:
        found.append(f"*{ast.unparse(arguments.vararg)}")
    elif arguments.kwonlyargs:
        found.append("*")
    found += [_argument(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [*found, *([f"**{ast.unparse(arguments.kwarg)}"] if arguments.kwarg else [])]


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    if default is None:
        return ast.unparse(argument)
    equals = " = " if argument.annotation else "="
    return f"{ast.unparse(argument)}{equals}{ast.unparse(default)}".replace("'", '"')


def main() -> None:
    """Write the signatures into the pages."""
    for path in sorted(REFERENCE.glob("*.md")):
        text = path.read_text()
        for block in blocks(text):
            text = text.replace(f"```pyi\n{block}```", f"```pyi\n{rendered(block)}```")
        path.write_text(text)


if __name__ == "__main__":
    main()
