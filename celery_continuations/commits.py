"""The transactions of Django that are open in this thread, and what waits for their commit.

Django is imported only if the caller's own code has done so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakSet

__all__ = ["after_commit", "atomic_blocks", "is_django", "open_aliases", "units"]

#: The blocks that are committed with the cursor of a task.
units: WeakSet[Any] = WeakSet()


def after_commit(act: Callable[[], None], check: Callable[[], None] = lambda: None) -> None:
    """Call ``act`` when all transactions that are open in this thread are committed; immediately if none is open.

    If it must wait, ``check`` is called first, to raise what ``act`` would raise.

    It is not called if one of them is rolled back.  A step's ``transaction=`` does not count: a worker that is killed
    right after its commit would lose the call, and the item is not repeated.

    >>> after_commit(lambda: print("done"))
    done
    """
    aliases = [one.alias for one in _open() if not any(block in units for block in one.atomic_blocks)]
    if not aliases:
        act()
        return
    check()
    from django.db import transaction

    transaction.on_commit(partial(after_commit, act), using=aliases[0])


def open_aliases() -> list[str]:
    """Return the aliases of the connections in a transaction, without that of a TestCase, which never commits."""
    return [one.alias for one in _open()]


def _open() -> list[Any]:
    if not is_django():
        return []
    from django.db import connections

    found = connections.all(initialized_only=True)
    return [one for one in found if one.in_atomic_block and atomic_blocks(one)]


def atomic_blocks(connection: Any) -> list[Any]:
    """Return the blocks of the caller, without those of a TestCase."""
    return [block for block in connection.atomic_blocks if not block._from_testcase]


def is_django() -> bool:
    """Whether this process uses Django's databases."""
    conf = sys.modules.get("django.conf")
    return "django.db" in sys.modules and conf is not None and conf.settings.configured
