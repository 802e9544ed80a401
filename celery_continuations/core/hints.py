"""What to write instead of a value that cannot be saved."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping, Set
from pathlib import PurePath
from typing import Any

__all__ = ["hint"]

# By the name of a method that only such types have, in the order in which they are tried.
_METHODS = {
    "model_dump": "value.model_dump()",  # pydantic
    "_asdict": "value._asdict()",  # a named tuple
    "values_list": 'list(value.values_list("pk", flat=True))',  # a queryset
    "_meta": "value.pk",  # a Django model
    "to_dict": "value.to_dict()",  # pandas
    "tolist": "value.tolist()",  # numpy: arrays, and numbers
}

# A subclass is saved as its base, if that is what is written.
_PLAIN = (bool, int, float, str, bytes)


def hint(value: Any) -> str:
    """Return the end of an error's sentence, or ``""`` where there is nothing to advise.

    >>> hint({1, 2})
    '; write sorted(value) instead'
    >>> hint(object())
    ''
    """
    written = _instead_of(value)
    return f"; write {written} instead" if written else ""


def _instead_of(value: Any) -> str | None:
    if isinstance(value, type):
        return None
    if isinstance(value, enum.Enum):
        return "value.value"
    if dataclasses.is_dataclass(value) and not hasattr(type(value), "model_dump"):
        return "dataclasses.asdict(value)"
    method = next((one for one in _METHODS if hasattr(type(value), one)), None)
    if method is not None:
        return _METHODS[method]
    if isinstance(value, PurePath):
        return "str(value)"
    if isinstance(value, Set):
        return "sorted(value)"
    plain = next((one for one in _PLAIN if isinstance(value, one)), None)
    if plain is not None:
        return f"{plain.__name__}(value)"
    if isinstance(value, (bytearray, memoryview)):
        return "bytes(value)"
    if isinstance(value, Mapping):
        return "dict(value)"
    if isinstance(value, BaseException):
        return "str(value)"
    return "list(value)" if isinstance(value, Iterable) else None
