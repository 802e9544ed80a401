"""Querysets of many shapes, over tables with repeated, missing and unusual keys, beside the plain queryset."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from django.db import connection, models
from django.db.models import Count, F, Prefetch
from django.db.models.query import ModelIterable
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_continuations import InvalidStepError
from celery_continuations.sources import opener
from celery_continuations.sources.django import query_rows
from tests.support.django_models import HAS_COMPOSITE_KEYS, model
from tests.support.keyed_properties import saved

pytestmark = pytest.mark.exhaustive


class Color(enum.Enum):
    RED = "z"
    BLUE = "a"


class ColorField(models.CharField):
    """Has members of an enum in Python."""

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return Color(value)

    def get_prep_value(self, value: Any) -> Any:
        return value.value if isinstance(value, Color) else value


class OfSubclasses(ModelIterable):
    """Yields instances of subclasses, as select_subclasses() and polymorphic querysets do."""

    def __iter__(self) -> Iterator[Any]:
        for row in super().__iter__():
            if row.kind == "gone":
                continue  # as rows of a subclass whose code is gone
            yield next(iter(Dog.objects.filter(pk=row.pk)), row)


class Subclasses(models.QuerySet):
    def select_subclasses(self) -> Any:
        query = self._chain()
        query._iterable_class = OfSubclasses
        return query


class Numbers:
    """An iterable class that is none of Django's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])


Order = model(
    "Order", {"managed": False, "db_table": "legacy_order"}, number=models.IntegerField(primary_key=True),
    line=models.IntegerField(), note=models.TextField(),
)  # fmt: skip
Client = model("Client", title=models.CharField(max_length=9), color=models.CharField(max_length=9))
Visit = model(
    "Visit", client=models.ForeignKey(Client, models.CASCADE, related_name="visits"), day=models.IntegerField()
)
Animal = model("Animal", kind=models.CharField(max_length=9), objects=Subclasses.as_manager())
Dog = type("Dog", (Animal,), {"__module__": __name__, "Meta": type("Meta", (), {"app_label": "rows"})})
Json = model("Json", key=models.JSONField(unique=True))
Painted = model("Painted", color=ColorField(max_length=9, primary_key=True))
Sole = model("Sole", client=models.OneToOneField(Client, models.CASCADE, primary_key=True), of=models.IntegerField())

if HAS_COMPOSITE_KEYS:
    Pair = model(
        "Pair", pk=models.CompositePrimaryKey("a", "b"), a=models.IntegerField(), b=models.CharField(max_length=9)
    )


@pytest.fixture(scope="module", autouse=True)
def tables() -> Iterator[None]:
    managed = [Client, Visit, Animal, Dog, Json, Painted, Sole, *([Pair] if HAS_COMPOSITE_KEYS else [])]
    with connection.schema_editor() as editor:
        for kind in managed:
            editor.create_model(kind)
        editor.execute("CREATE TABLE legacy_order (number integer, line integer, note text)")
    yield
    with connection.schema_editor() as editor:
        for kind in reversed(managed):
            editor.delete_model(kind)
        editor.execute("DROP TABLE legacy_order")


class Shape(NamedTuple):
    """A queryset, and what it has of a row by which rows can repeat, or why it is refused."""

    query: Callable[[], Any]
    key: Callable[[Any], Any] | None = None
    refused: str | None = None


def key_of(row: Any) -> Any:
    return row.pk


def first(row: Any) -> Any:
    return row[0]


CLIENTS = Client._base_manager.order_by("pk")
SHAPES: dict[str, Shape] = {
    "a key that is not unique": Shape(lambda: Order.objects.order_by("pk"), key_of),
    "a key that is not unique, descending": Shape(lambda: Order.objects.order_by("-number"), key_of),
    "values of a key that is not unique": Shape(lambda: Order.objects.order_by("pk").values_list("pk", flat=True), int),
    "a key that is not unique, grouped": Shape(
        lambda: Order.objects.order_by("pk").annotate(twice=F("line") * 2).filter(twice__gt=0), key_of
    ),
    "columns that are unique together": Shape(
        lambda: Order.objects.order_by("number", "line").values_list("number", "line")
    ),
    "a join to many": Shape(lambda: CLIENTS.filter(visits__day__gte=0), key_of),
    "a join to many, distinct": Shape(lambda: CLIENTS.filter(visits__day__gte=0).distinct()),
    "values of a join to many": Shape(lambda: CLIENTS.values_list("pk", "visits__day"), first),
    "the keys of a join to many": Shape(lambda: CLIENTS.filter(visits__day__gte=0).values_list("pk", flat=True), int),
    "distinct values of a join to many": Shape(lambda: CLIENTS.filter(visits__day__gte=0).values_list("pk").distinct()),
    "extra tables": Shape(lambda: CLIENTS.extra(tables=["rows_visit"]), key_of),
    "extra columns": Shape(lambda: CLIENTS.extra(select={"double": "2 * id"}).values_list("double", "id")),
    "an extra column in place of the key": Shape(
        lambda: CLIENTS.extra(select={"id": "2 * id"}), refused=r"extra\(select=...\) replaces id"
    ),
    "counts": Shape(lambda: CLIENTS.annotate(count=Count("visits"))),
    "counts of the keys": Shape(lambda: CLIENTS.values("pk").annotate(count=Count("visits")), refused="are groups"),
    "a union": Shape(lambda: CLIENTS.union(CLIENTS), refused="made by union"),
    "prefetched": Shape(lambda: CLIENTS.prefetch_related(Prefetch("visits", Visit.objects.order_by("-day")))),
    "by a foreign key": Shape(lambda: Visit.objects.order_by("client_id", "-pk").values("client", "pk")),
    "by a related column": Shape(lambda: Visit.objects.order_by("client__title", "pk"), refused="is not a column of"),
    "a key that is a relation": Shape(lambda: Sole.objects.order_by("-pk").values_list("of", "client")),
    "subclasses": Shape(lambda: Animal.objects.order_by("pk").select_subclasses()),
    "subclasses, descending": Shape(lambda: Animal.objects.order_by("-pk").select_subclasses()),
    "subclasses of a condition": Shape(lambda: Animal.objects.filter(pk__gt=2).select_subclasses().order_by("pk")),
    "values of subclasses": Shape(lambda: Animal.objects.select_subclasses().order_by("pk").values("kind", "pk")),
    "rows of another class": Shape(lambda: other_rows(), refused="rows are of Numbers; iterate over its .values_list"),
    "JSON": Shape(lambda: Json.objects.order_by("key"), refused=r"by key \(JSONField\): its values are JSON"),
    "locked rows": Shape(
        lambda: CLIENTS.select_for_update(),
        refused=r"Client.objects.select_for_update\(\).get\(pk=row.pk\), with",
    ),
}

if HAS_COMPOSITE_KEYS:
    SHAPES |= {
        "a composite key": Shape(lambda: Pair.objects.order_by("pk")),
        "a composite key in another order": Shape(lambda: Pair.objects.order_by("b", "-a")),
        "a composite key as values": Shape(lambda: Pair.objects.order_by("pk").values("pk")),
        "a composite key as values in a list": Shape(lambda: Pair.objects.order_by("-pk").values_list("pk")),
        "a composite key alone": Shape(lambda: Pair.objects.order_by("b", "a").values_list("pk", flat=True)),
        "a composite key beside a part": Shape(lambda: Pair.objects.order_by("pk").values_list("b", "pk", named=True)),
        "parts of a composite key": Shape(lambda: Pair.objects.order_by("-a", "b").values("b", "a")),
        "a part of a composite key": Shape(lambda: Pair.objects.order_by("pk").values("b"), refused="values lack a;"),
    }


def other_rows() -> Any:
    query = CLIENTS.all()
    query._iterable_class = Numbers
    return query


numbers = st.integers(0, 3)
pairs_of_numbers = st.lists(st.tuples(numbers, numbers), unique=True, max_size=7)


def fill(pairs: list[tuple[int, int]], kinds: list[str]) -> None:
    tables = [Visit, Sole, Client, Dog, Animal, *([Pair] if HAS_COMPOSITE_KEYS else [])]
    for kind in tables:
        kind._base_manager.all().delete()
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM legacy_order")
        cursor.executemany("INSERT INTO legacy_order VALUES (%s, %s, 'note')", pairs)
    Client.objects.bulk_create(Client(id=number, title="ab"[number % 2]) for number in {pair[0] for pair in pairs})
    Visit.objects.bulk_create(Visit(client_id=number, day=day) for number, day in pairs)
    Sole.objects.bulk_create(Sole(client_id=number, of=9 - number) for number in {pair[0] for pair in pairs})
    for number, kind in enumerate(kinds, 1):
        (Dog if kind == "dog" else Animal)._base_manager.create(pk=number, kind=kind)
    if HAS_COMPOSITE_KEYS:
        Pair.objects.bulk_create(Pair(a=a, b=str(b)) for a, b in pairs)


def seen(row: Any) -> Any:
    if isinstance(row, models.Model):
        return (
            type(row),
            row.pk,
            [visit.pk for visit in row.__dict__.get("_prefetched_objects_cache", {}).get("visits", ())],
        )
    return row


def by_key(query: Any, chunk: int, cursor: Any) -> list[tuple[Any, Any]]:
    """Return rows as a new execution sees them, each with its saved cursor."""
    reader = opener("rows", query_rows(query, chunk=chunk))().reader
    return [(seen(row), saved(after)) for row, after in reader.resume(cursor, reader.kind, None)]


@pytest.fixture(scope="module", autouse=True)
def few_at_a_time() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("celery_continuations.sources.django._AT_A_TIME", 2)
        yield


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=5, deadline=None)
@given(
    pairs=pairs_of_numbers, kinds=st.lists(st.sampled_from(["dog", "cat", "gone"]), max_size=7), chunk=st.integers(1, 4)
)
def test_a_queryset_by_key_has_the_rows_of_the_plain_queryset(
    name: str, pairs: list[tuple[int, int]], kinds: list[str], chunk: int
) -> None:
    """From every position on; a queryset that repeats a key is refused."""
    shape = SHAPES[name]
    if shape.refused is not None:
        with pytest.raises(InvalidStepError, match=shape.refused):
            query_rows(shape.query())
        return
    fill(pairs, kinds)
    rows = list(shape.query())
    keys = [] if shape.key is None else list(map(shape.key, rows))
    if len(set(keys)) < len(keys):
        done: list[Any] = []
        with pytest.raises(InvalidStepError, match="two rows have the key"):
            done.extend(cursor for _, cursor in query_rows(shape.query(), chunk=chunk).read(None))
        assert all(keys.count(key) == 1 for key in done)  # a stop between two rows of one key would lose the second
        return
    found = by_key(shape.query(), chunk, None)
    assert [row for row, _ in found] == list(map(seen, rows))
    for done, (_, cursor) in enumerate(found, 1):
        assert by_key(shape.query(), chunk, cursor) == found[done:]


@pytest.mark.parametrize("order", ["number", "-number"])
@pytest.mark.parametrize("chunk", [1, 2, 9])
def test_rows_without_a_key_are_refused(order: str, chunk: int) -> None:
    """A view can have them: no condition on the key would find them."""
    fill([], [])
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO legacy_order VALUES (%s, 1, 'note')", [[1], [None], [2]])
    with pytest.raises(InvalidStepError, match="a row has NULL in number"):
        by_key(Order.objects.order_by(order), chunk, None)
    with pytest.raises(InvalidStepError, match="a row has NULL in number"):
        by_key(Order.objects.order_by(order), chunk, 1)


def test_a_key_that_cannot_be_saved_is_refused_before_the_first_row(task: Any) -> None:
    Painted.objects.all().delete()
    Painted.objects.bulk_create([Painted(color=Color.RED), Painted(color=Color.BLUE)])
    seen_rows: list[Any] = []

    def body(self: Any) -> None:
        for row in self.iterate("painted", Painted.objects.all()):
            seen_rows.append(row)

    with pytest.raises(InvalidStepError, match=r"by color \(ColorField\): its value <Color.BLUE.* is of type Color"):
        task(body)()
    assert not seen_rows
