"""Copies of values that can be compared: by content, where ``==`` compares only identities or primary keys.

====================================================  ================================
numbers, texts, dates, enums, classes, functions      themselves; NaN equals NaN
lists, tuples, dicts, sets, views, iterators          copies of their items
querysets, queries and results of SQLAlchemy          their rows
model instances of Django and SQLAlchemy              their columns and annotations
dataclasses, attrs, pydantic models, named tuples     their fields
arrays, series and frames of numpy and pandas         their values
objects with an ``==`` of their own                   deep copies
other objects                                         their attributes
====================================================  ================================
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from reprlib import Repr
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any
from uuid import UUID

__all__ = ["Generated", "Parts", "comparable"]

_UNCHANGED = frozenset((bool, int, str, bytes, type(None), date, datetime, time, timedelta, UUID))
_ATOMS = (bool, int, str, bytes, Enum, type, FunctionType, BuiltinFunctionType, ModuleType, time, timedelta)

_repr = Repr()
_repr.maxstring = _repr.maxother = 120


class Parts:
    """The content of an object: its type, and its parts by name.

    >>> Parts("User", {"id": 1})
    User(id=1)
    """

    __slots__ = ("kind", "parts")

    def __init__(self, kind: str, parts: dict[str, Any]) -> None:
        self.kind = kind
        self.parts = parts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parts) and self.kind == other.kind and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.kind)  # a part may not have a hash

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(f'{name}={_repr.repr(value)}' for name, value in self.parts.items())})"


class _Incomparable(Exception):
    """A value that cannot be compared, at a path that grows while the error passes its containers."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.path: list[str] = []


class Generated:
    """Columns whose values are new for each new row: generated keys, dates of creation or change, random defaults.

    Attributes:
        are_compared: whether they are compared.
        were_met: whether a value had some.
    """

    def __init__(self) -> None:
        self.are_compared = True
        self.were_met = False


def comparable(value: Any, what: str, generated: Generated | None = None) -> Any:
    """Return a copy of ``value`` that is equal to that of another value with the same content.

    Args:
        value: the value.
        what: its name, for errors.
        generated: whether generated columns are compared; by default they are.

    Raises:
        ValueError: names the part of ``what`` that cannot be compared, and what to write instead.

    >>> comparable([1, {"two": (2,)}], "check()")
    [1, {'two': (2,)}]
    >>> comparable([float("nan")], "check()") == comparable([float("nan")], "check()")
    True
    >>> comparable({"lock": object()}, "check()")
    Traceback (most recent call last):
        ...
    ValueError: check()['lock'] cannot be compared, because an object equals nothing but itself and has no ...
    """
    try:
        return _Copy(generated or Generated()).of(value)
    except _Incomparable as exc:
        raise ValueError(f"{what}{''.join(reversed(exc.path))} cannot be compared, {exc}") from exc.__cause__
    except RecursionError:
        raise ValueError(f"{what} cannot be compared, because {_an(value)} is nested too deeply; {_INSTEAD}") from None


class _Copy:
    """One copy of a value, in which an object that contains itself is found."""

    def __init__(self, generated: Generated) -> None:
        self._generated = generated
        self._within: set[int] = set()

    def of(self, value: Any) -> Any:
        """Return the copy of one part."""
        kind = type(value)
        if kind in _UNCHANGED:
            return value
        if isinstance(value, _ATOMS):
            return value
        if kind in (float, complex, Decimal) or isinstance(value, date):
            is_nan = value.is_nan() if kind is Decimal else value != value
            return Parts(kind.__name__, {"value": str(value)}) if is_nan else value
        if id(value) in self._within:
            return Parts("…", {})
        self._within.add(id(value))
        try:
            return self._of_whole(value)
        finally:
            self._within.discard(id(value))

    def _of_whole(self, value: Any) -> Any:
        plain = _plain(value)
        if plain is not None:
            return self.of(plain[0])
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return self._parts(value, dict(zip(value._fields, value, strict=True)))
        if isinstance(value, (bytearray, memoryview)):
            return bytes(value)
        if isinstance(value, tuple):
            return tuple(self._items(value))
        if isinstance(value, (Sequence, ValuesView, Iterator)):
            return self._items(value)
        if isinstance(value, Mapping):
            return self._pairs(value)
        if isinstance(value, Set):
            items = self._items(value)
            members = set(items)
            return members if len(members) == len(items) else sorted(items, key=repr)
        fields = _fields(value, self._generated)
        if fields is not None:
            return self._parts(value, fields)
        return self._parts(value, _attributes(value)) if _has_no_eq(type(value)) else _copied(value)

    def _items(self, values: Iterable[Any]) -> list[Any]:
        items: list[Any] = []
        try:
            for item in values:
                items.append(item if type(item) in _UNCHANGED else self.of(item))
        except _Incomparable as exc:
            exc.path.append(f"[{len(items)}]")
            raise
        return items

    def _pairs(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        pairs: dict[Any, Any] = {}
        key = None
        try:
            for key, value in values.items():
                pairs[self.of(key)] = value if type(value) in _UNCHANGED else self.of(value)
        except _Incomparable as exc:
            exc.path.append(f"[{key!r}]")
            raise
        return pairs

    def _parts(self, value: Any, parts: dict[str, Any]) -> Parts:
        copied, name = {}, ""
        try:
            for name, part in parts.items():
                copied[name] = self.of(part)
        except _Incomparable as exc:
            exc.path.append(f".{name}")
            raise
        return Parts(type(value).__name__, copied)


def _loaded(name: str) -> Any:
    """Return a module, if the program has imported it."""
    return sys.modules.get(name)


def _plain(value: Any) -> tuple[Any] | None:
    """Return the value of plain types that has the same content, in a tuple; None if there is none."""
    package = type(value).__module__.partition(".")[0]
    if package == "builtins":
        return None
    models, engine, orm = map(_loaded, ("django.db.models", "sqlalchemy.engine", "sqlalchemy.orm"))
    if models is not None:
        if isinstance(value, models.Manager):
            return ([*value.all()],)
        if isinstance(value, (models.QuerySet, models.query.RawQuerySet)):
            return ([*value],)
        if isinstance(value, models.fields.files.FieldFile):
            return (value.name,)
    if engine is not None and isinstance(value, engine.Row):
        return (tuple(value),)
    if orm is not None and isinstance(value, orm.Query):
        return ([*value],)
    if package == "pandas":
        return _plain_pandas(value)
    if package == "numpy" and hasattr(value, "tolist"):
        return (value.tolist(),)
    return None


def _plain_pandas(value: Any) -> tuple[Any] | None:
    if type(value).__name__ == "NAType":
        return (str(value),)
    index = {"index": [*value.index]} if hasattr(value, "index") and hasattr(value, "items") else {}
    if hasattr(value, "columns"):
        return ({**index, **{name: [*column] for name, column in value.items()}},)
    return ({**index, "values": [*value]},) if hasattr(value, "tolist") else None


def _fields(value: Any, generated: Generated) -> dict[str, Any] | None:
    """Return the fields of a model instance, or of a class that declares its fields."""
    models, pydantic = map(_loaded, ("django.db.models", "pydantic"))
    if models is not None and isinstance(value, models.Model):
        found = {name: part for name, part in vars(value).items() if not name.startswith("_")}
        return _left(found, {one.attname for one in value._meta.concrete_fields if _is_generated(one)}, generated)
    if hasattr(value, "_sa_instance_state"):
        return _columns(value, generated)
    if dataclasses.is_dataclass(value):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value) if one.compare}
    if hasattr(type(value), "__attrs_attrs__"):
        return {one.name: getattr(value, one.name) for one in type(value).__attrs_attrs__ if one.eq}
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return {**vars(value), **(value.__pydantic_extra__ or {}), **(value.__pydantic_private__ or {})}
    if isinstance(value, BaseException):
        return {"args": value.args, **vars(value)}
    return None


def _is_generated(field: Any) -> bool:
    """Whether a field of Django's has another value for each new row."""
    fields = _loaded("django.db.models.fields")
    is_date_of_change = getattr(field, "auto_now", False) or getattr(field, "auto_now_add", False)
    is_made = callable(field.default) and not isinstance(field.default, type)  # as timezone.now, but not dict
    return isinstance(field, fields.AutoFieldMixin) or bool(is_date_of_change or is_made)


def _left(found: dict[str, Any], names: set[str], generated: Generated) -> dict[str, Any]:
    """Return what is compared of the columns of a row; ``names`` are the generated ones."""
    generated.were_met |= bool(names)
    return found if generated.are_compared else {name: part for name, part in found.items() if name not in names}


def _columns(value: Any, generated: Generated) -> dict[str, Any]:
    """Return the values of the columns of an instance that SQLAlchemy has mapped."""
    state = _loaded("sqlalchemy").inspect(value)
    names = [one.key for one in state.mapper.column_attrs]
    expired = state.expired_attributes
    if state.detached and expired.intersection(names):
        raise _Incomparable(
            f"because the session of this {type(value).__name__} has expired its columns, and is closed; within "
            f"the session write [({', '.join(f'one.{name}' for name in names[:3])}) for one in ...]"
        )
    attributes = state.mapper.column_attrs
    made = {one.key for one in attributes if any(map(_is_generated_column, one.columns))}
    found = {name: getattr(value, name) for name in names if name in expired or name not in state.unloaded}
    return _left(found, made, generated)


def _is_generated_column(column: Any) -> bool:
    """Whether a column of SQLAlchemy's has another value for each new row."""
    table, default = getattr(column, "table", None), getattr(column, "default", None)
    is_key = getattr(table, "autoincrement_column", None) is column
    is_on_server = hasattr(getattr(getattr(column, "server_default", None), "arg", None), "clauses")  # a function
    return is_key or is_on_server or (default is not None and not default.is_scalar)


def _attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object whose ``==`` compares identities."""
    slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
    found = {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}
    if not found:
        raise _Incomparable(
            f"because {_an(value)} equals nothing but itself and has no attributes: {_repr.repr(value)}; {_INSTEAD}"
        )
    return found


def _has_no_eq(kind: Any) -> bool:
    return kind.__eq__ is object.__eq__


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else [*slots]
    mangled = f"_{kind.__name__.lstrip('_')}"
    return [
        f"{mangled}{name}" if name.startswith("__") and not name.endswith("__") else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    ]


def _copied(value: Any) -> Any:
    """Return a deep copy of a value with an ``==`` of its own, which must be equal to it."""
    try:
        copied = copy.deepcopy(value)
        is_same = bool(value == copied)
    except Exception as exc:  # whatever the value's own code raises
        raise _Incomparable(f"because {_an(value)} raises {type(exc).__name__}: {exc}; {_INSTEAD}") from exc
    if not is_same:
        raise _Incomparable(f"because {_an(value)} does not equal its own copy: {_repr.repr(value)}; {_INSTEAD}")
    return copied


_INSTEAD = "return lists, dicts, texts and numbers instead"


def _an(value: Any) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
