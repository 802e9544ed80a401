"""Pages of an API, by token, and the keys of a mapping, in order."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from celery_continuations.core import codec
from celery_continuations.core.reader import Keep, NoItem, Print, SourceChanged
from celery_continuations.core.snapshot import ACCEPTED
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import BaseReader, Pairs, Source
from celery_continuations.sources.fingerprint import NONE
from celery_continuations.sources.positions import Prints
from celery_continuations.sources.reading import items_only

__all__ = ["StartAgain", "keys", "pages"]

Page = tuple[Iterable[Any], Any]

Item = TypeVar("Item")
Token = TypeVar("Token")
Key = TypeVar("Key")


# How many of the last pages are remembered, for the marks of cursors between two pages, and to notice a circle.
_REMEMBERED = 1000


class StartAgain(Exception):
    """Raise it in the function of :func:`pages` when a token has expired: the loop continues elsewhere.

    Args:
        token: of the page to continue with; None for the first page.

    >>> answers = {None: (["ann", "bob"], "p2"), "p2": (["eve"], None)}
    >>> def users(token):
    ...     if token == "expired":
    ...         raise StartAgain()
    ...     return answers[token]
    >>> [user for user, _ in pages(users).read(("expired", 1))]
    ['ann', 'bob', 'eve']
    """

    def __init__(self, token: Any = None) -> None:
        super().__init__(token)
        self.token = token


class _Trail(NamedTuple):
    """Notices that tokens go in a circle of any length (Brent's algorithm).

    Attributes:
        seen: a token to compare later ones with.
        pages: how many tokens have come since.
        limit: the number of tokens after which a later one is taken.
    """

    seen: Any
    pages: int = 0
    limit: int = 1

    def after(self, token: Any) -> _Trail:
        """Return the trail after another token."""
        if self.pages + 1 == self.limit:
            return _Trail(token, 0, self.limit * 2)
        return self._replace(pages=self.pages + 1)


class _Reached(NamedTuple):
    """How the token of a page was reached.

    Attributes:
        before: the token of the page before it.
        size: the number of items of that page.
        trail: the tokens up to this one.
    """

    before: Any
    size: int
    trail: _Trail


# What the function has answered: items and the next token, or that the loop must start again; None if not yet asked.
_Answer = tuple[list[Any], Any] | StartAgain | None


class _Pages(BaseReader):
    """A cursor is ``(token of the page, items of it that are done)``.

    A mark has the token of the page of the last item, how many of its items were done, and the fingerprint; and the
    trail of tokens.  A mark without a trail is a list of the former.
    """

    kind = "page"

    def __init__(self, function: Callable[[Any], Page]) -> None:
        self._function = function
        self._prints = Prints()
        self._reached: dict[str, _Reached] = {}  # by the text of a token

    @property
    def checks(self) -> bool:  # type: ignore[override]
        """Whether items are compared with those of earlier executions."""
        return self._prints.identity is not None

    def identify(self, identity: Any) -> None:
        """Distinguish items by the return value of this function; with None switch the check off."""
        self._prints = Prints(identity)

    def read(self, cursor: Any) -> Pairs:
        """Yield items with the token of their page, and the number of its items that are done."""
        return items_only(self.resume(cursor, None, ACCEPTED))

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Read from a cursor on, if the item before it is the one that was done."""
        self.refuse_other(kind)
        token, done = (None, 0) if cursor is None else _place(cursor)
        reached: dict[str, _Reached] = {}
        self._reached = reached
        if isinstance(mark, dict):
            seen, *counts = mark["trail"]
            reached[codec.dumps(token)] = _Reached(None, 0, _Trail(codec.decode(seen, "a token"), *counts))
            mark = mark["last"]
        page: _Answer = None
        if mark != ACCEPTED and self.checks:
            if done:
                page = self._page(token)
                if isinstance(page, tuple):
                    self._compare(page[0], token, done, mark)
            elif mark is not None:
                before = codec.decode(mark[0], "a token")
                page = self._page(before)
                if isinstance(page, tuple):
                    if not self._leads_to(token, before, page, mark):
                        return iter(())  # all later pages are gone
                    known = reached.get(codec.dumps(token)) or _Reached(None, 0, _Trail(token))
                    reached[codec.dumps(token)] = known._replace(before=before, size=mark[1])
                    page = None
        return self._items(token, done, page, reached)

    def _leads_to(self, token: Any, before: Any, page: tuple[list[Any], Any], mark: Any) -> bool:
        """Compare the page before a token; return False if it is the last one now."""
        items, following = page
        self._compare(items, before, mark[1], mark)
        if len(items) > mark[1]:
            raise SourceChanged(f"page {before!r} had {mark[1]} items and has {len(items)} now", _ADVICE)
        if following not in (None, token):
            raise SourceChanged(f"page {before!r} is followed by {following!r} now, not by {token!r}", _ADVICE)
        return following is not None

    def _items(self, token: Any, done: int, page: _Answer, reached: dict[str, _Reached]) -> Pairs:
        left: list[Any] = []  # the tokens whose pages asked to start again
        while True:
            page = page or self._page(token)
            if isinstance(page, StartAgain):
                if page.token == token or token in left:
                    raise self._stuck(token, page)
                left.append(token)
                reached.clear()
                token, done, page = page.token, 0, None
                # First, so that an error at that page does not leave the token that is not accepted in the cursor.
                yield NoItem((token, 0))
                continue
            items, following = page
            page = None
            if following is not None:
                self._reach(following, token, len(items), reached)
            last = len(items) - 1
            for index in range(done, len(items)):
                # After the last item of a page the next page is requested.
                at_next = index == last and following is not None
                yield items[index], (following, 0) if at_next else (token, index + 1)
            if following is None:
                return
            if done > last:
                yield NoItem((following, 0))
            token, done = following, 0

    def _stuck(self, token: Any, again: StartAgain) -> InvalidStepError:
        return InvalidStepError(
            f"the page of token {token!r} asked to start again at {again.token!r}, which leads back to it; raise "
            "StartAgain for a token that has expired, with one that has not",
            found=self.step,
        )

    def _reach(self, following: Any, token: Any, size: int, known: dict[str, _Reached]) -> None:
        """Note that a page was followed by this token."""
        key = codec.dumps(following)
        before = known.get(codec.dumps(token))
        trail = _Trail(following) if before is None else before.trail.after(following)
        if key in known or (before is not None and before.trail.seen == following):
            raise InvalidStepError(
                f"the pages go in a circle: page {token!r} is followed by page {following!r}, which was read before; "
                "return None as the next token at the end",
                found=self.step,
            )
        known[key] = _Reached(token, size, trail)
        if len(known) > _REMEMBERED:
            del known[next(iter(known))]

    def _page(self, token: Any) -> tuple[list[Any], Any] | StartAgain:
        try:
            page = self._function(token)
        except StartAgain as again:
            codec.encode(again.token, "the token of StartAgain")
            return again
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
        """Return the page of the last item, its number there, and its fingerprint; and the trail of tokens."""
        token, done = cursor
        reached = self._reached.get(codec.dumps(token))
        last = None
        if done:
            last = [codec.encode(token), done, *self._prints.taken(kept)]
        # A token that counts pages or items does not identify data: the previous page is requested again. Any other
        # token is taken as a place in the data.
        elif reached is not None and reached.size and _counts(token):
            last = [
                codec.encode(reached.before),
                reached.size,
                *(self._prints.taken(kept) if kept is not None else NONE),
            ]
        if reached is None:
            return last
        trail = reached.trail
        return {"last": last, "trail": [codec.encode(trail.seen), trail.pages, trail.limit]}


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
