"""What is kept of an error: its type, and its text, cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["LONGEST_TEXT", "causes", "cut", "cut_values", "described", "summary", "text_of"]

#: Characters of an error's text that are kept: a database driver puts whole statements into it.
LONGEST_TEXT = 1000


def cut(text: str, longest: int = LONGEST_TEXT) -> str:
    """Return the text, or its beginning and its length.

    >>> cut("a" * 2000)[998:]
    'aa… (2,000 characters)'
    """
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"


def cut_values(tree: Any) -> Any:
    """Return a JSON value with its texts cut.

    >>> cut_values(["a" * 2000, {"b": 1}])[1]
    {'b': 1}
    """
    if isinstance(tree, str):
        return cut(tree)
    if isinstance(tree, list):
        return [cut_values(one) for one in tree]
    return {key: cut_values(one) for key, one in tree.items()} if isinstance(tree, dict) else tree


def text_of(error: BaseException) -> str:
    """Return the text of an error, cut.

    >>> text_of(ValueError("no"))
    'no'
    """
    try:
        return cut(str(error))
    except Exception as exc:  # an error's own __str__ may raise anything
        return f"(its text cannot be shown: {type(exc).__name__})"


def summary(error: BaseException) -> str:
    """Return type and text of an error, cut.

    >>> summary(ValueError("no")), summary(KeyError())
    ('ValueError: no', 'KeyError')
    """
    return f"{type(error).__name__}: {text_of(error)}".removesuffix(": ")


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and the errors that it was raised from or while handling, the last one first."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def described(error: BaseException, current: Any) -> dict[str, Any]:
    """Return what a snapshot keeps of an error; ``current`` is its current step, with the encoded cursor, or None.

    >>> described(ValueError("no"), ("import", 3))
    {'type': 'ValueError', 'message': 'no', 'step': 'import', 'cursor': 3}
    """
    name, cursor = current or (None, None)
    return {"type": type(error).__name__, "message": text_of(error), "step": name, "cursor": cursor}
