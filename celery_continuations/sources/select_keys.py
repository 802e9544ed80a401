"""What a select is read by: its key, and whether its rows must be read together."""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import UnaryExpression
from sqlalchemy.types import TypeDecorator

from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.keyed import Column, cannot_be_key

__all__ = ["Shape", "Stored", "decorated", "shape_of", "statement_of"]


class Stored(TypeDecorator[Any]):
    """The values of a decorated type as the database has them, whose order is the one that counts."""

    cache_ok = True
    impl = sa.Integer  # not used: each dialect has the type that the other decorator chooses

    def __init__(self, decorator: TypeDecorator[Any]) -> None:
        super().__init__()
        self.decorator = decorator

    def load_dialect_impl(self, dialect: Any) -> Any:
        """Return the type that is decorated."""
        kind: Any = self.decorator
        while isinstance(kind, TypeDecorator):
            kind = kind.load_dialect_impl(dialect)
        return kind


def decorated(column: Any) -> TypeDecorator[Any] | None:
    """Return the type of a column, if it is a decorator that is not SQLAlchemy's own."""
    kind = column.type
    if isinstance(kind, TypeDecorator) and not type(kind).__module__.startswith("sqlalchemy."):
        return kind
    return None


class Shape(NamedTuple):
    """How a select is read.

    Attributes:
        order: the columns of its order, which begin with those of the key.
        key: the columns of the key.
        columns: how many things it selects.
        entities: which of them are entities.
        identity: if it selects one entity by its primary key, which has the values as stored: the place of each
            column in that.
        is_unique: whether equal rows count once, as SQLAlchemy requires or a Query does.
        is_whole: whether all rows with one key must be read together, because collections are made of them.
    """

    order: list[Column]
    key: list[Column]
    columns: int
    entities: list[int]
    identity: tuple[int, ...] | None
    is_unique: bool
    is_whole: bool


def statement_of(query: Any) -> Any:
    """Return the statement of a Query.

    Raises:
        InvalidStepError: when it has columns where the Query has entities, as after ``union()``.
    """
    statement: Any = query.statement
    made = [one.get("entity") for one in query.column_descriptions]
    found = [one.get("entity") for one in getattr(statement, "column_descriptions", ())]
    if found and any(made) and made != found:
        raise InvalidStepError(
            "a Query after union(), intersect() or except_() cannot be read by key: its statement selects columns, not "
            "entities; combine the conditions with or_() and and_(), or select from the union with "
            "select(aliased(Entity, union.subquery()))"
        )
    return statement


def shape_of(select: Any, is_query: bool) -> Shape:
    """Return how to read a select.

    Raises:
        InvalidStepError: for a select that cannot be read by key, with the reason and what to write.
    """
    described = select.column_descriptions
    entities = [place for place, one in enumerate(described) if _is_entity(one)]
    _refuse(select, has_entities_only=len(entities) == len(described))
    table = _Table.of(select)
    order = _order(select, table)
    is_single = len(described) == 1
    has_collections, are_in_its_joins = _collections(select) if entities else (False, False)
    key = order
    if is_single and (has_collections or (is_query and entities)):
        key = _of_one_entity(order, table)
    if are_in_its_joins and not (is_single and all(column.column in table.columns for column in key)):
        raise InvalidStepError(
            "a select cannot be read by key: it fills collections from its joins (contains_eager), and its rows are "
            "those of several entities, or in the order of another one; write selectinload() in place of "
            "contains_eager()"
        )
    if select._distinct:
        _refuse_order_of_distinct(select, order)
    _refuse_types(key)
    _refuse_null(select, order)
    return Shape(
        order,
        key,
        len(described),
        entities,
        identity=_places(key, table.primary) if is_single and entities else None,
        is_unique=has_collections or (is_query and is_single and bool(entities)),
        is_whole=has_collections,
    )


def _is_entity(described: Any) -> bool:
    return described.get("entity") is not None and described["expr"] is described["entity"]


def _refuse(select: Any, has_entities_only: bool) -> None:
    """Refuse a select that cannot be cut into chunks by a condition on the key."""
    problem = None
    # SQLAlchemy has no public names for these.
    if select._limit_clause is not None or select._offset_clause is not None or select._fetch_clause is not None:
        problem = "it has a limit or offset, and so have its chunks: end the loop with break instead"
    elif select._group_by_clauses or select._having_criteria:
        problem = "its rows are groups, which have no key: iterate over the rows of the groups"
    elif select._distinct and (select._distinct_on or not has_entities_only):
        problem = "distinct rows of columns have no key: select entities"
    elif any(map(_looks_at_other_rows, select.selected_columns)):
        problem = "an aggregate or window function depends on other rows, which a chunk lacks"
    if problem is not None:
        raise InvalidStepError(f"a select cannot be read by key: {problem}")


def _looks_at_other_rows(element: Any) -> bool:
    if isinstance(element, (sa.ScalarSelect, sa.SelectBase)):
        return False  # only at rows of its own
    if isinstance(element, sa.Over) or (
        isinstance(element, sa.sql.functions.FunctionElement) and _is_aggregate(element)
    ):
        return True
    return any(map(_looks_at_other_rows, element.get_children()))


def _is_aggregate(function: Any) -> bool:
    return function.name.lower() in _AGGREGATES


_AGGREGATES = frozenset((
    "count", "sum", "min", "max", "avg", "total", "array_agg", "string_agg", "group_concat", "aggregate_strings",
    "json_agg", "jsonb_agg", "json_object_agg", "jsonb_object_agg", "json_group_array", "json_group_object",
    "bool_and", "bool_or", "every", "stddev", "variance", "any_value",
))  # fmt: skip


def _collections(select: Any) -> tuple[bool, bool]:
    """Return whether its rows fill collections, and whether those come from its own joins."""
    state = select.compile().compile_state
    # The condition for which SQLAlchemy requires unique(); it has no public name.
    if not state.multi_row_eager_loaders:
        return False, False
    paths = [one[1] for one in state.attributes if type(one) is tuple and one[0] == "user_defined_eager_row_processor"]
    return True, any(getattr(part, "uselist", False) for path in paths for part in path)


# -- the key


def _order(select: Any, table: _Table) -> list[Column]:
    """Return the columns of the order, or of the primary key; an order that is not unique is refused."""
    order = [_ordered(clause) for clause in select._order_by_clauses]
    if not order:
        if not table.unique:
            raise InvalidStepError("a select cannot be read by key: its table has no primary key")
        never_null = (key for key in table.unique if not any(column.nullable for column in key))
        return [_named(column, False) for column in next(never_null, table.unique[0])]
    columns = {column.column for column in order}
    if not any(columns.issuperset(unique) for unique in table.unique):
        primary = ", ".join(map(str, table.unique[0])) if table.unique else "no primary key"
        raise _order_error(order, f"rows can share the same place in it; end it with the primary key, {primary}")
    return order


def _of_one_entity(order: list[Column], table: _Table) -> list[Column]:
    """Return the columns of an order that identify the entity, or all if another table's come before them."""
    for count in range(1, len(order) + 1):
        columns = {column.column for column in order[:count]}
        if not columns.issubset(table.columns):
            break
        if any(columns.issuperset(unique) for unique in table.unique):
            return order[:count]
    return order


def _places(key: list[Column], primary: list[Any]) -> tuple[int, ...] | None:
    """Return the place of each column in the primary key, if it has the same columns."""
    if any(decorated(one.column) for one in key):
        return None  # it has the values in Python
    places = {column: place for place, column in enumerate(primary)}
    return tuple(places[one.column] for one in key) if {one.column for one in key} == places.keys() else None


def _named(column: Any, descending: bool) -> Column:
    return Column(str(column), column, descending, type(column.type).__name__)


def _ordered(clause: Any) -> Column:
    column, descending = clause, False
    while isinstance(column, UnaryExpression) and column.modifier in _MODIFIERS:
        descending = descending or column.modifier is operators.desc_op
        column = column.element
    if not isinstance(column, sa.Column):
        raise InvalidStepError(
            f"a select cannot be read by key: its order has {str(clause)!r}, which is not a column of a table; "
            "write the column itself, as in order_by(User.name.desc(), User.id)"
        )
    return _named(column, descending)


_MODIFIERS = (operators.desc_op, operators.asc_op, operators.nulls_first_op, operators.nulls_last_op)


def _order_error(order: list[Column], problem: str) -> InvalidStepError:
    names = ", ".join(column.name for column in order)
    return InvalidStepError(f"a select cannot be read by key: its order by {names} is not a unique key: {problem}")


class _Table(NamedTuple):
    """The first entity or table of a select.

    Attributes:
        columns: its columns, as the select has them.
        primary: its primary key.
        unique: its unique keys; the primary key, if it has one, comes first.
    """

    columns: frozenset[Any]
    primary: list[Any]
    unique: list[list[Any]]

    @classmethod
    def of(cls, select: Any) -> _Table:
        """Find it."""
        entity = next((one["entity"] for one in select.column_descriptions if one.get("entity") is not None), None)
        if entity is not None:
            mapper = sa.inspect(entity).mapper
            of = _columns_of(entity)
            keys = [list(mapper.primary_key), *(key for table in mapper.tables for key in _keys_of(table))]
        else:
            source = next(iter(select.get_final_froms()), None)
            while isinstance(source, sa.Join):
                source = source.left
            columns = () if source is None else source.columns
            of = {base: column for column in columns for base in column.base_columns}
            tables = {column.table: None for column in of}
            keys = _keys_of(next(iter(tables))) if len(tables) == 1 else []
        unique = [[of[column] for column in key] for key in keys if key and all(column in of for column in key)]
        primary = unique[0] if keys and all(column in of for column in keys[0]) else []
        return cls(frozenset(of.values()), primary, unique)


def _columns_of(entity: Any) -> dict[Any, Any]:
    """Return the columns of an entity's tables, each with the entity's own expression for it."""
    mapper = sa.inspect(entity).mapper
    return {
        column: getattr(entity, mapper.get_property_by_column(column).key).expression
        for table in mapper.tables
        for column in table.columns
        if column in mapper.columns.values()
    }


def _keys_of(table: Any) -> list[list[Any]]:
    """Return the sets of columns that are unique."""
    unique = [one for one in table.constraints if isinstance(one, sa.UniqueConstraint)]
    partial_or_not = [one for one in table.indexes if one.unique]
    whole = [one for one in partial_or_not if not any(name.endswith("_where") for name in one.dialect_kwargs)]
    plain = [one for one in whole if all(isinstance(part, sa.Column) for part in one.expressions)]
    # SQLAlchemy keeps them in sets: each process would find another one first.
    others = sorted((list(one.columns) for one in (*unique, *plain)), key=lambda key: [one.name for one in key])
    return [list(table.primary_key.columns), *others]


# -- what a key cannot have


def _refuse_types(key: list[Column]) -> None:
    """Refuse columns whose values have no order in the database, or cannot be saved."""
    for column in key:
        kind = column.column.type
        while isinstance(kind, TypeDecorator):
            kind = kind.impl_instance
        if isinstance(kind, sa.JSON):
            raise cannot_be_key(column, "its values are JSON")
        try:
            python_type = kind.python_type
        except NotImplementedError:
            continue  # the first row shows it
        if issubclass(python_type, (dict, list, tuple, set)):
            raise cannot_be_key(column, f"its values are of type {python_type.__name__}")


def _refuse_null(select: Any, order: list[Column]) -> None:
    """Refuse columns that can be NULL: nothing comes after NULL, so the next chunk would lack the rest."""
    for column in order:
        if column.column.nullable:
            raise _order_error(
                order, f"{column.name} can be NULL, and nothing comes after NULL; order by other columns"
            )
    bare = select.with_only_columns(*(one.column for one in order), maintain_column_froms=True)
    bare._with_options = ()  # for loading entities, which it has none of
    optional = {table for source in bare.get_final_froms() for table in _optional(source)}
    for column in order:
        if column.column.table in optional:
            raise _order_error(
                order,
                f"{column.name} is NULL where the outer join finds nothing, and nothing comes after NULL; write "
                "join() in place of outerjoin(), or order by the columns of the other table alone",
            )


def _optional(source: Any, is_optional: bool = False) -> list[Any]:
    """Return the tables on the optional side of an outer join."""
    if not isinstance(source, sa.Join):
        return [source] if is_optional else []
    return [
        *_optional(source.left, is_optional or source.full),
        *_optional(source.right, is_optional or source.isouter or source.full),
    ]


def _refuse_order_of_distinct(select: Any, order: list[Column]) -> None:
    selected = {
        column
        for one in select.column_descriptions
        if _is_entity(one)
        for column in _columns_of(one["entity"]).values()
    }
    for column in order:
        if column.column not in selected:
            raise _order_error(
                order, f"a distinct select must select the columns of its order, and lacks {column.name}"
            )
