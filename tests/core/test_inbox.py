"""What was delivered to a task: equal payloads are equal, and no outcome spoils another."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_continuations.core import codec
from celery_continuations.core.inbox import Inbox
from celery_continuations.core.outcome import DEEPEST_PAYLOAD, Outcome
from celery_continuations.exceptions import UnserializableValueError

LARGEST = 10**6

names = st.text(max_size=5) | st.sampled_from(["~", "~m", "~t", '"', "\\", "{", "]", ","])
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(names | st.integers(), inner), max_leaves=9
)


def payload(value: Any) -> Outcome:
    return Outcome.of_payload(value, "the payload", LARGEST)


def nested(kind: str, levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"list": lambda v: [v], "dict": lambda v: {"a": v}, "~": lambda v: {"~": v}, "1": lambda v: {1: v}}[
            kind
        ](value)
    return value


# -- equal payloads


def respelled(value: Any, spell: Any) -> Any:
    """The value with its keys in another order, and its whole numbers written otherwise."""
    if isinstance(value, dict):
        items = [(key, respelled(item, spell)) for key, item in value.items()]
        return dict(reversed(items))
    if isinstance(value, list):
        return [respelled(item, spell) for item in value]
    if type(value) is int and abs(value) < 2**53:
        return spell(value)
    return value


@given(values)
def test_the_spelling_of_a_payload_does_not_count(value: Any) -> None:
    for spell in (int, float):
        assert payload(value).equals(payload(respelled(value, spell)))


@given(values, values)
def test_payloads_are_equal_where_their_values_are(one: Any, other: Any) -> None:
    def typed(value: Any) -> Any:
        """The value as Python compares it, with booleans that equal no number."""
        if isinstance(value, bool):
            return repr(value)
        if isinstance(value, dict):
            return {key: typed(item) for key, item in value.items()}
        return ["list", *map(typed, value)] if isinstance(value, list) else ("scalar", value)

    assert payload(one).equals(payload(other)) == (typed(one) == typed(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, True), (0, False), (0, None), (1, "1"), ([], {}), ([1], (1,)), ({"1": 2}, {1: 2}), ([1, 2], [2, 1])],
)
def test_payloads_that_differ(one: Any, other: Any) -> None:
    for wrap in (lambda value: value, lambda value: [value], lambda value: {"a": value}, lambda value: {1: value}):
        assert not payload(wrap(one)).equals(payload(wrap(other)))


def test_an_error_does_not_equal_a_value() -> None:
    assert not payload(None).equals(Outcome("timeout"))


# -- depth and size


@pytest.mark.parametrize("kind", ["list", "dict", "~", "1"])
@pytest.mark.parametrize("levels", [20, 21, 22, 63, 64, 65, 325, 491, 983, 5000])
def test_a_payload_is_accepted_only_if_every_process_can_read_it(kind: str, levels: int) -> None:
    if levels * (3 if kind in "~1" else 1) <= DEEPEST_PAYLOAD:
        inbox = Inbox(deep=payload(nested(kind, levels)))
        assert Inbox.loads(inbox.dumps())["deep"].replay("deep") == nested(kind, levels)
    else:
        with pytest.raises(UnserializableValueError, match="the payload cannot be saved: it is nested"):
            payload(nested(kind, levels))


@given(values)
def test_the_size_limit_is_that_of_what_is_stored(value: Any) -> None:
    size = len(codec.dumps(value))
    Outcome.of_payload(value, "the payload", size)
    with pytest.raises(UnserializableValueError, match=f"the payload is too large: it is {size:,} bytes, .* allows "):
        Outcome.of_payload(value, "the payload", size - 1)


# -- one outcome that cannot be read

DAMAGED = [
    *(f'["value",{"[" * depth}1{"]" * depth}]' for depth in (401, 990, 100_000)),
    *('["value",' + '{"~m":[["~",' * depth + "1" + "]]}" * depth + "]" for depth in (140, 325, 491, 20_000)),
    "null", "7", "[]", '["value"]', '["value",1,2]', '{"value":1}', "[7,1]", '["unheard of",1]',
]  # fmt: skip


@pytest.mark.parametrize("damaged", DAMAGED, ids=range(len(DAMAGED)))
@pytest.mark.parametrize("name", ["b", '"', "{", "],", "\\", "ü"])
def test_an_outcome_that_cannot_be_read_harms_no_other(damaged: str, name: str) -> None:
    at = datetime(2026, 1, 1, tzinfo=timezone.utc)
    others = {"first": payload({"a": [1, "]"]}), "last": payload(at)}
    before, after = (Inbox({key: one}).dumps()[1:-1] for key, one in others.items())
    inbox = Inbox.loads(f"{{{before},{json.dumps(name)}:{damaged},{after}}}")
    assert list(inbox) == ["first", name, "last"]
    for key, one in others.items():
        assert inbox[key] == one
    with pytest.raises(UnserializableValueError, match="cannot be read"):
        inbox[name].replay(name)
    assert Inbox.loads(inbox.dumps()) == inbox, "the next write mends the record"


@pytest.mark.parametrize("depth", [64, 65, 200, 400])
def test_deep_ones_of_release_0_1_that_can_be_read_stay_readable(depth: int) -> None:
    inbox = Inbox.loads(f'{{"deep":["value",{"[" * depth}{"]" * depth}]}}')
    assert inbox["deep"].replay("deep") == json.loads("[" * depth + "]" * depth)


@pytest.mark.parametrize("text", ["[", "[]", "7", "nonsense", '{"a":[' + "[" * 10_000, "[" * 10_000 + "]" * 10_000])
def test_what_is_no_inbox_is_refused(text: str) -> None:
    with pytest.raises(UnserializableValueError, match="the inbox cannot be read"):
        Inbox.loads(text)
