"""Lists of model instances: by key if they are in its order, else by position."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from celery_continuations.core import codec
from celery_continuations.core.reader import Keep, OtherKind, Pairs
from celery_continuations.exceptions import UnserializableValueError
from celery_continuations.sources.fingerprint import identity_of
from celery_continuations.sources.keyed import Unsaveable, saveable
from celery_continuations.sources.positions import Positions

__all__ = ["instances"]


def instances(items: Any) -> Instances | None:
    """Return a reader for a sequence that begins with a saved model instance, or None for anything else."""
    if not isinstance(items, Sequence) or isinstance(items, (range, str, bytes)) or not len(items):
        return None
    return Instances(items) if _key_columns(items[0]) is not None else None


def _key_columns(item: Any) -> tuple[str, list[str]] | None:
    """Return the model and the columns of its key, or None for anything but a saved instance."""
    if identity_of(item) is None:
        return None
    meta = getattr(type(item), "_meta", None)
    if meta is not None and hasattr(item, "_state"):
        fields = getattr(meta, "pk_fields", None) or [meta.pk]  # pk_fields came with Django 5.2
        return str(meta.label), [str(field.attname) for field in fields]
    state = getattr(item, "_sa_instance_state", None)
    if state is not None:
        return "", [str(column) for column in state.mapper.primary_key]
    return None


class Instances(Positions):
    """Cursors are keys if the keys of all items are strictly monotone, as those of most queries are.

    A saved cursor is read as the kind that it was saved as.
    """

    def __init__(self, items: Any) -> None:
        super().__init__(items)
        self._keys: list[Any] | None = None
        self._columns = _key_columns(items[0])  # before the body of the loop can change the first instance
        self._descending = False

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The kind of a loop over the query, or position."""
        return "position" if self._keys is None else self._kind_by_key()

    @property
    def uses(self) -> int:  # type: ignore[override]
        """2 by key: release 0.1 would read a key as a position."""
        return 1 if self._keys is None else 2

    @property
    def checks(self) -> bool:
        """Whether items are compared with those of earlier executions."""
        return self._keys is None and super().checks

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Read from a key on, or from a position."""
        if kind is not None and kind.startswith("key "):
            return self._by_saved_key(cursor, kind)
        if cursor is None and kind is None and self._take_keys():
            return self._after(None)
        return super().resume(cursor, kind, mark)

    def _by_saved_key(self, cursor: Any, kind: str) -> Pairs:
        """Read in the order of the key, even if the items have another order now."""
        keys = self._keys_of_all()
        if keys is None:
            raise OtherKind(kind, "position")
        for descending in (False, True):
            self._keys, self._descending = keys, descending
            if kind == self._kind_by_key():
                order = sorted(range(len(keys)), key=keys.__getitem__, reverse=descending)
                self._items = [self._items[place] for place in order]
                self._keys = [keys[place] for place in order]
                return self._after(cursor)
        raise OtherKind(kind, self._kind_by_key())

    def _take_keys(self) -> bool:
        keys = self._keys_of_all()
        if keys is None:
            return False
        if all(first < second for first, second in pairwise(keys)):
            self._keys, self._descending = keys, False
        elif all(first > second for first, second in pairwise(keys)):
            self._keys, self._descending = keys, True
        return self._keys is not None

    def _keys_of_all(self) -> list[Any] | None:
        """Return the keys, if all items are of one model and saved, and their keys can be ordered and saved."""
        items = self._items
        identities = [identity_of(item) for item in items]
        if len(set(map(type, items))) > 1 or None in identities:
            return None
        keys: list[Any] = [found.value for found in identities if found is not None]
        try:
            keys = saveable(keys, several=isinstance(keys[0], tuple)) if keys else keys
            codec.encode(keys[:1])
            sorted(keys)
        except (TypeError, Unsaveable, UnserializableValueError):
            return None
        return keys if len(set(keys)) == len(keys) else None

    def _kind_by_key(self) -> str:
        assert self._columns is not None
        of, names = self._columns
        return f"key {of}({', '.join(f'-{name}' if self._descending else name for name in names)})"

    def _after(self, cursor: Any) -> Pairs:
        assert self._keys is not None
        start = 0 if cursor is None else self._place(cursor)
        return zip(self._items[start:], self._keys[start:], strict=True)

    def _place(self, cursor: Any) -> int:
        """Return the number of items up to a key."""
        assert self._keys is not None
        if self._descending:
            return sum(key >= cursor for key in self._keys)
        return sum(key <= cursor for key in self._keys)

    def keep_of(self, item: Any) -> Keep:
        """Keep nothing by key: a key finds its place."""
        return Keep() if self._keys is not None else super().keep_of(item)

    def mark(self, cursor: Any, kept: Any) -> Any:
        """Save nothing beside a key."""
        return None if self._keys is not None else super().mark(cursor, kept)

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """Return the number of all items; by key the loop counts those that are done."""
        return (None, self._total) if self._keys is not None else super().progress(cursor)
