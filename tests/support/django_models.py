"""Models of a Django project that is nothing else, in a database in memory."""

from __future__ import annotations

from typing import Any

import django
from django.db import connections, models

HAS_COMPOSITE_KEYS = django.VERSION >= (5, 2)


def model(name: str, meta: dict[str, Any] | None = None, **fields: Any) -> Any:
    """Define a model."""
    options = type("Meta", (), {"app_label": "rows", **(meta or {})})
    return type(name, (models.Model,), {"__module__": __name__, "Meta": options, **fields})


#: A model for each type that a primary key can have.
BY_KIND: dict[str, Any] = {
    "int": model("OfInt", key=models.BigIntegerField(primary_key=True)),
    "uuid": model("OfUUID", key=models.UUIDField(primary_key=True)),
    "date": model("OfDate", key=models.DateField(primary_key=True)),
    "datetime": model("OfDatetime", key=models.DateTimeField(primary_key=True)),
    "str": model("OfStr", key=models.CharField(max_length=100, primary_key=True)),
    "decimal": model("OfDecimal", key=models.DecimalField(max_digits=8, decimal_places=2, primary_key=True)),
}

if HAS_COMPOSITE_KEYS:
    BY_KIND["composite"] = model(
        "OfComposite",
        key=property(lambda self: self.pk),
        pk=models.CompositePrimaryKey("day", "number"),
        day=models.DateField(),
        number=models.IntegerField(),
    )


class Author(models.Model):
    name = models.CharField(max_length=100, unique=True)
    nickname = models.CharField(max_length=100, unique=True, null=True)

    class Meta:
        app_label = "rows"
        ordering = ["-name"]


class Book(models.Model):
    created = models.DateTimeField()
    author = models.ForeignKey(Author, models.CASCADE)
    number = models.IntegerField()
    note = models.CharField(max_length=100, null=True)
    shelf = models.IntegerField(default=0)

    class Meta:
        app_label = "rows"
        constraints = [
            models.UniqueConstraint(fields=["author", "number"], name="author_number"),
            models.UniqueConstraint(
                fields=["number", "shelf"], name="number_shelf_at_the_end", deferrable=models.Deferrable.DEFERRED
            ),
            models.UniqueConstraint(fields=["shelf"], condition=models.Q(note="alone"), name="shelf_of_some"),
        ]


class Novel(Book):
    class Meta:
        app_label = "rows"


class Letter(models.Model):
    """For the example in the documentation."""

    text = models.CharField(max_length=1)

    class Meta:
        app_label = "rows"


class Untidy(models.Model):
    text = models.CharField(max_length=100)

    class Meta:
        app_label = "rows"
        ordering = ["text"]


def create_tables(alias: str = "default") -> None:
    """Create the tables of all models, where they are not there yet."""
    connection = connections[alias]
    if Author._meta.db_table in connection.introspection.table_names():
        return
    with connection.schema_editor() as editor:
        for kind in (*BY_KIND.values(), Author, Book, Novel, Letter, Untidy):
            editor.create_model(kind)
