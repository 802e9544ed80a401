"""Pages of an API, by token, and the keys of a mapping, in order."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from celery_continuations.core import codec
from celery_continuations.core.reader import Keep, Print, SourceChanged
from celery_continuations.core.snapshot import ACCEPTED
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import BaseReader, Pairs, Source
from celery_continuations.sources.positions import Prints

__all__ = ["keys", "pages"]

Page = tuple[Iterable[Any], Any]

Item = TypeVar("Item")
Token = TypeVar("Token")
Key = TypeVar("Key")


# How many pages' numbers of items are kept, for the marks of cursors between two pages.
_REMEMBERED = 100


class _Pages(BaseReader):
    """A cursor is ``(token of the page, items of it that are done)``.

    A mark has the token of the page of the last item, how many of its items were done, and the fingerprint.
    """

    kind = "page"

    def __init__(self, function: Callable[[Any], Page]) -> None:
        self._function = function
        self._prints = Prints()
        self._before: dict[str, tuple[Any, int]] = {}  # token and size of the page before, by the text of a token

    @property
    def checks(self) -> bool:  # type: ignore[override]
        """Whether items are compared with those of earlier executions."""
        return self._prints.identity is not None

    def identify(self, identity: Any) -> None:
        """Distinguish items by the return value of this function; with None switch the check off."""
        self._prints = Prints(identity)

    def read(self, cursor: Any) -> Pairs:
        """Yield items with the token of their page, and the number of its items that are done."""
        return self.resume(cursor, None, ACCEPTED)

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Read from a cursor on, if the item before it is the one that was done."""
        self.refuse_other(kind)
        token, done = (None, 0) if cursor is None else _place(cursor)
        page = None
        if mark != ACCEPTED and self.checks:
            if done:
                page = self._page(token)
                self._compare(page[0], token, done, mark)
            elif mark is not None:
                before = codec.decode(mark[0], "a token")
                items, following = self._page(before)
                self._compare(items, before, mark[1], mark)
                if len(items) > mark[1]:
                    raise SourceChanged(f"page {before!r} had {mark[1]} items and has {len(items)} now", _ADVICE)
                if following is None:
                    return iter(())  # all later pages are gone
                if following != token:
                    raise SourceChanged(f"page {before!r} is followed by {following!r} now, not by {token!r}", _ADVICE)
                self._before[codec.dumps(token)] = (before, mark[1])
        return self._items(token, done, page)

    def _items(self, token: Any, done: int, page: tuple[list[Any], Any] | None) -> Pairs:
        while True:
            items, following = page or self._page(token)
            page = None
            if _counts(following):
                self._before[codec.dumps(following)] = (token, len(items))
                if len(self._before) > _REMEMBERED:
                    del self._before[next(iter(self._before))]
            last = len(items) - 1
            for index in range(done, len(items)):
                # After the last item of a page the next page is requested.
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

    def _compare(self, items: list[Any], token: Any, done: int, mark: Any) -> None:
        if len(items) < done:
            raise SourceChanged(f"{done} items of page {token!r} were done, but it has {len(items)} now", _ADVICE)
        _, _, digest, before = mark if mark is not None else (None, None, None, None)
        if digest is None:
            return
        now = self._prints.again(items[done - 1], digest)
        if now.digest != digest:
            shown = f": then {before}, now {now.shown}" if before and now.shown else ""
            raise SourceChanged(f"item {done} of page {token!r} was done and has changed{shown}", _ADVICE)

    def keep_of(self, item: Any) -> Keep:
        """Choose how to keep items like this one."""
        return self._prints.keep_of(item)

    def taken(self, cursor: Any, kept: Any) -> Print:
        """Return the fingerprint of the item before a cursor."""
        return self._prints.taken(kept)

    def mark(self, cursor: Any, kept: Any) -> Any:
        """Return the page of the last item, its number there, and its fingerprint."""
        token, done = cursor
        if done == 0:
            # A token that counts pages or items does not identify data: the previous page is requested again. Any
            # other token is taken as a place in the data.
            if not _counts(token) or codec.dumps(token) not in self._before:
                return None
            token, done = self._before[codec.dumps(token)]
        return [codec.encode(token), done, *self._prints.taken(kept)]


# In a text, such as the address of the next page: page=2, /page/2, page[number]=2, startAt=50, p=2.
_NUMBERED = re.compile(r"(page|offset|skip|start|from|index|\bp\b)[^0-9]{0,12}\d", re.IGNORECASE)


def _counts(token: Any) -> bool:
    """Whether a token is the number of a page or of an item, or has one."""
    if type(token) is not str:
        return type(token) is int
    return (token.isdecimal() and len(token) < 10) or _NUMBERED.search(token) is not None


_ADVICE = (
    "A page needs the same items when it is asked for again. Where the data has a unique key, write "
    "keyed_pages(fetch, key=...), which asks for what comes after the last one."
)


def _place(cursor: Any) -> tuple[Any, int]:
    if type(cursor) is not tuple or len(cursor) != 2 or type(cursor[1]) is not int or cursor[1] < 0:
        raise InvalidStepError(f"pages cannot be read from {cursor!r}: that is not a token with a number of items")
    return cursor


def pages(function: Callable[[Token | None], tuple[Iterable[Item], Token | None]]) -> Source[Item]:
    """Return the items of an API that gives them in pages.

    A task that resumes requests the current page again, and skips the items that it has done, if the last of them is
    still the same.  Between two pages it continues with the next token; if that is a number, of a page or of an item,
    it first requests the previous page and compares its last item.

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


class _Keys(BaseReader):
    """A cursor is the last key done."""

    kind = "key of a mapping"

    def __init__(self, mapping: Mapping[Any, Any]) -> None:
        try:
            self._keys = sorted(mapping)
        except TypeError as exc:
            raise InvalidStepError(f"the keys of the mapping have no order to resume in: {exc}") from exc
        if None in self._keys:
            raise InvalidStepError("the mapping has the key None, which stands for the beginning")

    def read(self, cursor: Any) -> Pairs:
        """See :class:`Source`."""
        rest = self._keys[self._place(cursor) :]
        return zip(rest, rest, strict=True)

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """Return the number of keys done, and of all."""
        return self._place(cursor), len(self._keys)

    def _place(self, cursor: Any) -> int:
        if cursor is None:
            return 0
        try:
            return bisect_right(self._keys, cursor)
        except TypeError as exc:
            raise InvalidStepError(f"the keys of the mapping have no order with {cursor!r}: {exc}") from exc


def keys(mapping: Mapping[Key, Any]) -> Source[Key]:
    """Return the keys of a mapping in their order, resuming after the last one that is done.

    Keys that are removed or added meanwhile do no harm; those added before the place reached are not visited.

    Args:
        mapping: its keys must be comparable with each other, and of types that can be saved.

    >>> list(keys({"b": 1, "a": 2}).read(None))
    [('a', 'a'), ('b', 'b')]
    >>> list(keys({"b": 1, "c": 3}).read("a"))
    [('b', 'b'), ('c', 'c')]
    """
    return _Keys(mapping)
