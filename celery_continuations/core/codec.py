"""Convert values to JSON and back without losing their types.

JSON has six types; a cursor may have more.  Each of the others is written as a mapping with one key that begins with
``~``.  Only exact types are allowed: a subclass (an enum, a numpy integer, a named tuple) would be restored as another
type, so it is refused when it is set, not when it is read.  The two types that freezegun puts in the place of ``date``
and ``datetime`` count as these: code under test gets them where a worker would get the real ones.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from celery_continuations.core.hints import hint
from celery_continuations.exceptions import UnserializableValueError

__all__ = [
    "IMMUTABLE", "NEWER", "copy", "decode", "depth", "dumps", "encode", "equal", "extend", "has_newer", "loads",
    "real_type",
]  # fmt: skip

#: How the tags begin that came with version 2 of the snapshot's format.
NEWER = "~2"


def real_type(kind: Any) -> Any:
    """Return the type that freezegun has replaced by ``kind``, or ``kind`` itself.

    >>> real_type(date) is date
    True
    """
    if kind.__module__ != "freezegun.api":
        return kind
    return next((one for one in kind.__mro__ if one.__module__ == "datetime"), kind)


# freezegun replaces the values of global names, but not what containers hold.
_DATES: tuple[type[date], type[datetime]] = (real_type(date), real_type(datetime))

#: Types that need no copy when they are set.
IMMUTABLE = frozenset((type(None), bool, int, float, str, Decimal, *_DATES, time, timedelta, UUID, bytes))

# CPython refuses to turn longer integers into decimal digits (sys.set_int_max_str_digits);
# hexadecimal has no such limit. 4,300 digits are 14,284 bits.
_LONGEST_DECIMAL_INT = 14_000

ALLOWED = (
    "None, bool, int, float, str, Decimal, datetime, date, time, timedelta, UUID, bytes, "
    "and lists, tuples and dicts of them"
)


class _Refused(Exception):
    """A value without an encoding; the caller knows its name."""


def dumps(value: Any, what: str = "value") -> str:
    """Write ``value`` as JSON text that keeps its types.

    Raises:
        UnserializableValueError: names ``what``, when a type would not be restored as equal.

    >>> dumps((1, 2))
    '{"~t":[1,2]}'
    >>> dumps({1: "a"})
    '{"~m":[[1,"a"]]}'
    """
    return json.dumps(encode(value, what), separators=(",", ":"))


def loads(text: str, what: str = "value") -> Any:
    """Read what :func:`dumps` wrote.

    Raises:
        UnserializableValueError: when ``text`` is not such JSON.

    >>> loads(dumps({"at": date(2026, 1, 31), "pair": (1, 2)}))
    {'at': datetime.date(2026, 1, 31), 'pair': (1, 2)}
    """
    try:
        tree = json.loads(text)
    except (ValueError, TypeError, RecursionError) as exc:
        raise UnserializableValueError(what, f"is not JSON: {exc}") from exc
    return decode(tree, what)


def encode(value: Any, what: str = "value") -> Any:
    """Return ``value`` as a tree of JSON types.  Raises as :func:`dumps`."""
    try:
        return _encode(value)
    except _Refused as exc:
        raise UnserializableValueError(what, f"cannot be saved: {exc}") from None
    except RecursionError:
        raise UnserializableValueError(what, "cannot be saved: it is nested too deeply, or contains itself") from None


def decode(tree: Any, what: str = "value") -> Any:
    """Return the value from which :func:`encode` made ``tree``.  Raises as :func:`loads`."""
    try:
        return _decode(tree)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as exc:
        raise UnserializableValueError(what, f"can no longer be decoded: {type(exc).__name__}: {exc}") from exc


def copy(value: Any, what: str = "value") -> Any:
    """Return ``value`` with its containers copied, or refuse it.  Raises as :func:`dumps`."""
    if type(value) in IMMUTABLE:
        encode(value, what)
        return value
    return decode(encode(value, what), what)


def extend(kind: type, tag: str, encoder: Callable[[Any], Any], decoder: Callable[[Any], Any]) -> None:
    """Allow values of ``kind`` and its subclasses: ``encoder`` makes a JSON tree of one, ``decoder`` reads it."""
    _BASES[kind] = lambda value: {f"{NEWER}{tag}": encoder(value)}
    _DECODERS[f"{NEWER}{tag}"] = decoder


def has_newer(text: str) -> bool:
    """Whether JSON text may have something in it that came with version 2 of the snapshot's format."""
    return f'"{NEWER}' in text


def depth(tree: Any) -> int:
    """Return how many containers of ``tree`` are within each other; of any tree, however deep.

    >>> depth(1), depth([]), depth(encode({"a": [1]})), depth(encode({"~": 1}))
    (0, 1, 2, 3)
    """
    levels, inner = 0, [tree]
    while inner := [one for one in inner if isinstance(one, (list, dict))]:
        levels += 1
        inner = [item for one in inner for item in (one.values() if isinstance(one, dict) else one)]
    return levels


def equal(one: Any, other: Any) -> bool:
    """Whether two trees were made of equal values: the order of keys does not count, nor whether 1 is written 1.0.

    >>> equal(encode({"a": 1, "b": True}), encode({"b": True, "a": 1.0}))
    True
    >>> equal(encode(1), encode(True))
    False
    """
    return bool(_comparable(one) == _comparable(other))


def _comparable(tree: Any) -> Any:
    """Return what equals that of an equal tree, and is hashable."""
    if isinstance(tree, list):
        return tuple(map(_comparable, tree))
    if isinstance(tree, dict):
        pairs = tree["~m"] if tree.keys() == {"~m"} else tree.items()
        return frozenset((_comparable(key), _comparable(item)) for key, item in pairs)
    return type(tree) if tree is None else (isinstance(tree, bool), tree)


def _encode(value: Any) -> Any:
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return value if _is_unicode(value) else {"~s": _base64(value.encode("utf-8", "surrogatepass"))}
    if kind is int:
        return value if value.bit_length() <= _LONGEST_DECIMAL_INT else {"~i": hex(value)}
    if kind is list:
        return [_encode(item) for item in value]
    if kind is dict:
        if all(type(key) is str and not key.startswith("~") and _is_unicode(key) for key in value):
            return {key: _encode(item) for key, item in value.items()}
        return {"~m": [[_encode(_hashable(key)), _encode(item)] for key, item in value.items()]}
    encoder = _ENCODERS.get(kind)
    if encoder is None:
        encoder = _ENCODERS.get(real_type(kind))
    if encoder is None:
        encoder = next((encode for base, encode in _BASES.items() if isinstance(value, base)), None)
    if encoder is None:
        raise _Refused(f"{_type_name(kind)} is not one of {ALLOWED}{hint(value)}")
    return encoder(value)


def _decode(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_decode(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        ((tag, data),) = tree.items()
        if tag.startswith("~"):
            return _DECODERS[tag](data)
    return {key: _decode(item) for key, item in tree.items()}


def _is_unicode(text: str) -> bool:
    """Whether ``text`` has no surrogates: JSON would combine a pair of them into one character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _hashable(key: Any) -> Any:
    if type(key) is not tuple and real_type(type(key)) not in IMMUTABLE:
        raise _Refused(f"a dict key of type {_type_name(type(key))}")
    return key


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _encode_float(value: float) -> Any:
    return value if math.isfinite(value) else {"~f": repr(value)}


def _encode_zone(zone: tzinfo | None) -> Any:
    if zone is None:
        return None
    if type(zone) is ZoneInfo and zone.key is not None:
        return zone.key
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        name = zone.tzname(None)
        return [_timedelta(offset), None if name == timezone(offset).tzname(None) else name]
    raise _Refused(f"a time zone of type {_type_name(type(zone))}; use zoneinfo.ZoneInfo or datetime.timezone")


def _decode_zone(data: Any) -> tzinfo | None:
    if data is None:
        return None
    if isinstance(data, str):
        return ZoneInfo(data)
    (offset, name) = data
    delta = timedelta(*offset)
    if name is not None:
        return timezone(delta, name)
    return timezone.utc if not delta else timezone(delta)


def _timedelta(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _encode_datetime(value: datetime) -> Any:
    naive = value.replace(tzinfo=None, fold=0).isoformat()
    zone = value.tzinfo
    if type(zone).__module__.startswith("dateutil.") and real_type(type(value)) is not type(value):
        zone = timezone(value.utcoffset() or timedelta(), value.tzname() or "")  # what a real astimezone() gives
    return {"~dt": [naive, value.fold, _encode_zone(zone)]}


def _decode_datetime(data: Any) -> datetime:
    text, fold, zone = data
    return _DATES[1].fromisoformat(text).replace(fold=fold, tzinfo=_decode_zone(zone))


def _encode_time(value: time) -> Any:
    naive = value.replace(tzinfo=None, fold=0).isoformat()
    return {"~time": [naive, value.fold, _encode_zone(value.tzinfo)]}


def _decode_time(data: Any) -> time:
    text, fold, zone = data
    return time.fromisoformat(text).replace(fold=fold, tzinfo=_decode_zone(zone))


# Encoders of types with subclasses, see extend().
_BASES: dict[type, Callable[[Any], Any]] = {}

_ENCODERS: dict[type, Callable[[Any], Any]] = {
    float: _encode_float,
    tuple: lambda value: {"~t": [_encode(item) for item in value]},
    Decimal: lambda value: {"~dec": str(value)},
    _DATES[1]: _encode_datetime,
    _DATES[0]: lambda value: {"~d": value.isoformat()},
    time: _encode_time,
    timedelta: lambda value: {"~td": _timedelta(value)},
    UUID: lambda value: {"~u": value.hex},
    bytes: lambda value: {"~b": _base64(value)},
}

_DECODERS: dict[str, Callable[[Any], Any]] = {
    "~i": lambda data: int(data, 16),
    "~f": float,
    "~t": lambda data: tuple(_decode(item) for item in data),
    "~m": lambda data: {_decode(key): _decode(item) for key, item in data},
    "~dec": Decimal,
    "~dt": _decode_datetime,
    "~d": _DATES[0].fromisoformat,
    "~time": _decode_time,
    "~td": lambda data: timedelta(*data),
    "~u": UUID,
    "~b": _unbase64,
    "~s": lambda data: _unbase64(data).decode("utf-8", "surrogatepass"),
}
