"""Type variables with defaults, so that ``ContinuableTask`` and ``Step`` alone are types as well.

Python's own have defaults since 3.13; type checkers know those of typing_extensions without its being installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import ParamSpec, TypeVar

    #: The parameters of a task.
    P = ParamSpec("P", default=...)
    #: What a task returns.
    R_co = TypeVar("R_co", covariant=True, default=Any)
    #: What a source yields.
    Item_co = TypeVar("Item_co", covariant=True, default=Any)
    #: What a step's cursor is.
    Cursor = TypeVar("Cursor", default=Any)
else:
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R_co = TypeVar("R_co", covariant=True)
    Item_co = TypeVar("Item_co", covariant=True)
    Cursor = TypeVar("Cursor")

__all__ = ["Cursor", "Item_co", "P", "R_co"]
