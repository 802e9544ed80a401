"""A value that cannot be saved is refused with the line to write."""

from __future__ import annotations

import collections
import dataclasses
import enum
import pathlib
from typing import Any

import pytest

from celery_continuations.core import codec
from celery_continuations.exceptions import UnserializableValueError

Pair = collections.namedtuple("Pair", "a b")


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Order:
    number: int


class Numpy:
    """As numpy's arrays and numbers."""

    def tolist(self) -> list[int]:
        return [1]


class Pydantic:
    def model_dump(self) -> dict[str, int]:
        return {"a": 1}


class Model:
    _meta: Any = None
    pk = 7


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({1}, "sorted(value)"),
        (frozenset("a"), "sorted(value)"),
        (Pair(1, 2), "value._asdict()"),
        (Colour.RED, "value.value"),
        (Number.ONE, "value.value"),
        (Order(7), "dataclasses.asdict(value)"),
        (Numpy(), "value.tolist()"),
        (Pydantic(), "value.model_dump()"),
        (Model(), "value.pk"),
        (Text("a"), "str(value)"),
        (pathlib.PurePath("a"), "str(value)"),
        (bytearray(b"a"), "bytes(value)"),
        (collections.OrderedDict(a=1), "dict(value)"),
        (collections.deque([1]), "list(value)"),
        (range(3), "list(value)"),
        ((n for n in [1]), "list(value)"),
        (LookupError("gone"), "str(value)"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_what_to_write_can_be_saved(value: Any, written: str) -> None:
    with pytest.raises(UnserializableValueError) as caught:
        codec.encode([{"deep": value}], "the value of step 'a'")
    assert str(caught.value).endswith(f"; write {written} instead")
    if not isinstance(value, Text):
        codec.encode(eval(written, {"value": value, "dataclasses": dataclasses}))


@pytest.mark.parametrize("value", [object(), Order, Colour, len, 1j])
def test_nothing_is_advised_for_other_values(value: Any) -> None:
    with pytest.raises(UnserializableValueError, match="and lists, tuples and dicts of them$"):
        codec.encode(value)


class Odd:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_a_value_is_not_asked_for_its_attributes() -> None:
    with pytest.raises(UnserializableValueError):
        codec.encode(Odd())
