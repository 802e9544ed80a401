"""Fingerprints of items, by which a loop by position notices that its source has changed.

A fingerprint is a hash, and is never decoded, so it can be taken of more types than can be saved: of database rows by
their key, of objects with an id by that, of values, and of containers by their parts.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from os import PathLike, fspath
from typing import Any, NamedTuple
from uuid import UUID

from celery_continuations.core.reader import Print

__all__ = [
    "NONE",
    "Identity",
    "identity_of",
    "is_immutable",
    "print_again",
    "print_of",
    "print_of_copy",
    "scalar_parts",
    "shown",
]

#: Names of ids, in order of precedence.
IDS = ("id", "pk", "uuid", "_id")

_SCALARS = (str, int, float, Decimal, bytes, UUID, date, time, timedelta, Enum, type(None))

# Exact types whose values never change.
_IMMUTABLE = frozenset((str, int, float, bool, Decimal, bytes, UUID, date, datetime, time, timedelta, type(None)))

# How many parts of a container count, and how many characters of them.
_LEAVES, _CHARACTERS = 64, 4096

# How many characters of a text count directly; the whole of a longer text counts by its digest.
_SHORT = 64

# The longest id that is shown.
_SHOWN = 40


class Identity(NamedTuple):
    """The identity of a database row, or of an item with an id.

    Attributes:
        of: the model, the mapped class, or the name of the id.
        value: its key, or its id.
    """

    of: str
    value: Any


#: The fingerprint of an item of which none can be taken.
NONE = Print(None)


def print_of(item: Any) -> Print:
    """Return the fingerprint of an item.

    It is taken of the first of these: the key of a saved model instance, an id, its value, its parts.

    >>> print_of({"id": 7, "views": 1}) == print_of({"id": 7, "views": 2})
    True
    >>> print_of({"name": "ann"}) == print_of({"name": "bob"})
    False
    >>> print_of(object()).digest is None
    True
    """
    if isinstance(item, Identity):
        value = shown(item.value)
        return Print(_digest([f"{item.of}={_text(item.value)}"]), None if value is None else f"id {value}")
    found = identity_of(item)
    if found is not None:
        return print_of(found)
    if isinstance(item, Enum) or _is_scalar(item):
        return Print(_digest([_text(item)]), shown(item) if isinstance(item, (int, UUID)) else None)
    leaves: list[str] = []
    if not _collect(item, leaves, _Room(_LEAVES, _CHARACTERS)):
        return NONE
    return Print(_digest(leaves))


def print_of_copy(item: Any) -> Print:
    """Return the fingerprint of a shallow copy of a container, whose mutable parts may have been changed since.

    If it has such parts, the digest is of the others, and begins with ``~``.

    >>> row = {"name": "ann", "tags": [1]}
    >>> copied = dict(row)
    >>> row["tags"].append(2)
    >>> print_of_copy(copied) == print_again({"name": "ann", "tags": [1]}, print_of_copy(copied).digest)
    True
    """
    if identity_of(item) is not None or scalar_parts(item):
        return print_of(item)
    if isinstance(item, dict):
        found = print_of({name: part for name, part in item.items() if is_immutable(part)})
    else:
        found = print_of([part if is_immutable(part) else None for part in item])
    return NONE if found.digest is None else Print(f"~{found.digest}", found.shown)


def print_again(item: Any, digest: str) -> Print:
    """Return the fingerprint of an item, taken in the same way as ``digest``."""
    return print_of_copy(item) if digest.startswith("~") and isinstance(item, (dict, list, tuple)) else print_of(item)


def _digest(leaves: list[str]) -> str:
    return hashlib.blake2b("\x1f".join(leaves).encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def shown(value: Any) -> str | None:
    """Return an id in the form for an operator, or None: whole items are never shown.

    >>> shown(4711), shown("user-7"), shown("x" * 41)
    ('4711', 'user-7', None)
    """
    if isinstance(value, (int, UUID)) or (isinstance(value, str) and len(value) <= _SHOWN):
        return str(value)
    return None


# -- identities


def identity_of(item: Any) -> Identity | None:
    """Return the model and key of a saved model instance, or the id of an item that has one."""
    state = getattr(item, "_state", None)
    if state is not None and hasattr(type(item), "_meta"):  # Django
        is_saved = not getattr(state, "adding", True) and item.pk is not None
        return Identity(item._meta.concrete_model._meta.label, item.pk) if is_saved else None
    state = getattr(item, "_sa_instance_state", None)
    if state is not None:  # SQLAlchemy
        return Identity(type(item).__qualname__, _single(state.key[1])) if state.key else None
    if isinstance(item, Mapping):
        return _named(item.get)
    if isinstance(item, type) or _is_scalar(item):
        return None
    return _named(lambda name: getattr(item, name, None))


def _single(key: tuple[Any, ...]) -> Any:
    return key[0] if len(key) == 1 else key


def _named(get: Callable[[str], Any]) -> Identity | None:
    for name in IDS:
        try:
            value = get(name)
        except Exception:  # a custom property or mapping
            continue
        if value is None or isinstance(value, bool):
            continue
        if isinstance(value, (int, str, UUID, bytes)):
            return Identity(name, value)
        if type(value).__name__ == "ObjectId":  # of MongoDB, in the package bson
            return Identity(name, str(value))
    return None


# -- values and containers


def _is_scalar(item: Any) -> bool:
    return isinstance(item, (*_SCALARS, PathLike)) or _is_numpy_scalar(item)


def _is_numpy_scalar(item: Any) -> bool:
    return type(item).__module__ == "numpy" and getattr(item, "shape", None) == () and hasattr(item, "item")


def _text(value: Any) -> str:
    """Return a scalar as text: the same in each process, and different for each value and type."""
    if isinstance(value, Enum):
        return f"enum {type(value).__qualname__}.{value.name}"
    if _is_numpy_scalar(value):
        return _text(value.item())
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(timezone.utc)
    if isinstance(value, (datetime, date, time)):
        return f"{value.isoformat()}"
    if isinstance(value, str):
        return f"'{_shortened(str.__str__(value))}"
    if isinstance(value, bytes):
        return f"b{hashlib.blake2b(value, digest_size=12).hexdigest()}"
    if isinstance(value, PathLike):
        return f"path {fspath(value)!r}"
    if isinstance(value, tuple):
        return f"({','.join(map(_text, value))})"
    if isinstance(value, bool):
        return f"{value}"
    if isinstance(value, int):
        return f"{int.__index__(value):x}"
    return f"{value!r}"


def _shortened(text: str) -> str:
    """Return a text, or the digest of a long one, so that later parts of a container count as well."""
    if len(text) <= _SHORT:
        return text
    return f"{text[:_SHORT]}…{hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=12).hexdigest()}"


class _Room:
    """How much more of a container counts."""

    def __init__(self, leaves: int, characters: int) -> None:
        self.leaves = leaves
        self.characters = characters

    @property
    def is_full(self) -> bool:
        return self.leaves <= 0 or self.characters <= 0


def _collect(item: Any, leaves: list[str], room: _Room, depth: int = 0) -> bool:
    """Add the texts of the parts that have one; return whether any has."""
    if room.is_full or depth > _DEPTH:
        return False
    found = identity_of(item)
    if found is not None or _is_scalar(item):
        text = f"{found.of}={_text(found.value)}" if found is not None else _text(item)
        leaves.append(text[: room.characters])
        room.leaves -= 1
        room.characters -= len(text)
        return True
    any_found = False
    parts = _parts(item)
    if parts is None:
        return False
    leaves.append("[")
    for name, part in parts:
        if room.is_full:
            break
        if name is not None:
            leaves.append(f"{name}:")
        any_found = _collect(part, leaves, room, depth + 1) or any_found
    leaves.append("]")
    return any_found


# How deep containers are searched.
_DEPTH = 16


def _parts(item: Any) -> Iterator[tuple[str | None, Any]] | None:
    """Return the parts of a container, with their names if they have any, or None for anything else."""
    if isinstance(item, Mapping):
        return _sorted_items(item)
    kind = type(item)
    if isinstance(item, Sequence) or (kind.__module__, kind.__name__) == ("sqlite3", "Row"):  # not a Sequence itself
        return ((None, part) for part in item)
    if isinstance(item, Set):
        return ((None, part) for part in sorted(item, key=lambda part: str(print_of(part).digest)))
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return ((one.name, getattr(item, one.name, None)) for one in dataclasses.fields(item) if one.compare)
    if hasattr(type(item), "__attrs_attrs__"):
        return ((one.name, getattr(item, one.name, None)) for one in type(item).__attrs_attrs__)
    if hasattr(type(item), "model_fields") or hasattr(type(item), "__pydantic_fields__"):
        return iter(list(vars(item).items()))
    return None


def _sorted_items(item: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    named = sorted(((_text(key) if _is_scalar(key) else str(print_of(key).digest), key) for key in item), key=_first)
    return ((name, item[key]) for name, key in named)


def _first(pair: tuple[str, Any]) -> str:
    return pair[0]


# -- immutability


def is_immutable(item: Any) -> bool:
    """Whether an item cannot be changed in place, so that its fingerprint may be taken later.

    >>> is_immutable((1, "a")), is_immutable((1, []))
    (True, False)
    """
    kind = type(item)
    if kind in _IMMUTABLE or isinstance(item, Enum):
        return True
    if kind is tuple or (isinstance(item, tuple) and hasattr(kind, "_fields")):
        return all(map(is_immutable, item))
    return False


def scalar_parts(item: Any) -> bool:
    """Whether a dict or list has only parts that cannot be changed in place, so that a shallow copy keeps them."""
    parts = item.values() if type(item) is dict else item
    return all(map(is_immutable, parts))
