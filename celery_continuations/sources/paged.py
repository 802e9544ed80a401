"""Pages of an API, by token, and the keys of a mapping, in order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery_continuations.core import codec
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import Pairs, Source

__all__ = ["keys", "pages"]

Page = tuple[Iterable[Any], Any]


class _Pages:
    """A cursor is ``(token of the page, items of it that are done)``."""

    def __init__(self, function: Callable[[Any], Page]) -> None:
        self._function = function

    def read(self, cursor: Any) -> Pairs:
        """As of Source."""
        token, done = (None, 0) if cursor is None else _place(cursor)
        return self._items(token, done)

    def _items(self, token: Any, done: int) -> Pairs:
        while True:
            items, following = self._page(token)
            last = len(items) - 1
            for index in range(done, len(items)):
                # After its last item a page need not be asked again: the next one is.
                at_next = index == last and following is not None
                yield items[index], (following, 0) if at_next else (token, index + 1)
            if following is None:
                return
            token, done = following, 0

    def _page(self, token: Any) -> tuple[list[Any], Any]:
        page = self._function(token)
        if not isinstance(page, tuple) or len(page) != 2:
            raise InvalidStepError(
                f"the page of token {token!r} is {type(page).__name__} {page!r:.80}; "
                "return a tuple of its items and the next token, which is None at the end"
            )
        items, following = page
        codec.encode(following, f"the token after page {token!r}")
        if following is not None and following == token:
            raise InvalidStepError(f"the page of token {token!r} is followed by itself; return None at the end")
        return list(items), following


def _place(cursor: Any) -> tuple[Any, int]:
    if type(cursor) is not tuple or len(cursor) != 2 or type(cursor[1]) is not int or cursor[1] < 0:
        raise InvalidStepError(f"pages cannot be read from {cursor!r}: that is no token with a number of items")
    return cursor


def pages(function: Callable[[Any], Page]) -> Source:
    """Return the items of an API that gives them in pages.

    A task that resumes asks for the page again in which it was, and leaves out as many items as it has done; where
    a page may come with other items the second time, those may be missed, or come twice.

    Args:
        function: from the token of a page, None for the first, to a tuple of its items and the token of the next,
            None at the end.  Write ``token or None`` for an API whose last token is empty.

    >>> def users(token):
    ...     return {None: (["ann", "bob"], "p2"), "p2": (["eve"], None)}[token]
    >>> list(pages(users).read(None))
    [('ann', (None, 1)), ('bob', ('p2', 0)), ('eve', ('p2', 1))]
    >>> list(pages(users).read((None, 1)))
    [('bob', ('p2', 0)), ('eve', ('p2', 1))]
    """
    if not callable(function):
        raise InvalidStepError(f"pages takes a function from token to items and next token, not {function!r}")
    return _Pages(function)


class _Keys:
    """A cursor is the last key done."""

    def __init__(self, mapping: Mapping[Any, Any]) -> None:
        try:
            self._keys = sorted(mapping)
        except TypeError as exc:
            raise InvalidStepError(f"the keys of the mapping have no order to resume in: {exc}") from exc
        if None in self._keys:
            raise InvalidStepError("the mapping has the key None, which would be taken for the beginning")

    def read(self, cursor: Any) -> Pairs:
        """As of Source."""
        rest = self._keys[self._place(cursor) :]
        return zip(rest, rest, strict=True)

    def progress(self, cursor: Any) -> tuple[int, int]:
        """Keys done, and in all."""
        return self._place(cursor), len(self._keys)

    def _place(self, cursor: Any) -> int:
        if cursor is None:
            return 0
        try:
            return bisect_right(self._keys, cursor)
        except TypeError as exc:
            raise InvalidStepError(f"the keys of the mapping have no order with {cursor!r}: {exc}") from exc


def keys(mapping: Mapping[Any, Any]) -> Source:
    """Return the keys of a mapping in their order, resuming after the last one that is done.

    Keys that are removed or added meanwhile do no harm; those added before the place reached are not visited.

    Args:
        mapping: whose keys can be compared with each other, and saved.

    >>> list(keys({"b": 1, "a": 2}).read(None))
    [('a', 'a'), ('b', 'b')]
    >>> list(keys({"b": 1, "c": 3}).read("a"))
    [('b', 'b'), ('c', 'c')]
    """
    return _Keys(mapping)
