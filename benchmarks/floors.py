"""The bare calls that a saved checkpoint is compared with, as a lower bound."""

from __future__ import annotations

import sqlite3
from itertools import cycle
from pathlib import Path
from typing import Any

__all__ = ["BareFile", "BarePostgres", "BareRedis", "BareSQLite", "alternate"]


def alternate(text: str) -> tuple[str, str]:
    """Return two texts of the same size to alternate between: SQLite does not write an unchanged value."""
    return text, f"{text[:-1]} "


# The minimum that rejects a superseded execution: one key, whose value begins with the fence.
_COMPARE_AND_SET = """
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
_NOTHING = "return 1"


class BareRedis:
    """Calls of redis-py with the texts of one save, and nothing around them.

    Args:
        client: a redis-py client.
        fence: the text to compare.
        text: the text to set.
    """

    def __init__(self, client: Any, fence: str, text: str) -> None:
        self._client = client
        self._fence = fence
        self._text = f"{fence}\n{text}"
        self._compare_and_set = client.script_load(_COMPARE_AND_SET)
        self._nothing = client.script_load(_NOTHING)
        client.set("benchmark:record", self._text)

    def set(self) -> None:
        """SET."""
        self._client.set("benchmark:text", self._text)

    def evalsha(self) -> None:
        """EVALSHA of a script that does nothing with the texts."""
        self._client.evalsha(self._nothing, 1, "benchmark:record", self._fence, self._text)

    def compare_and_set(self) -> None:
        """EVALSHA of the smallest script that compares the fence and sets the text."""
        if not self._client.evalsha(self._compare_and_set, 1, "benchmark:record", self._fence, self._text):
            raise AssertionError("the fence did not match")


class BareFile:
    """A file replaced as a whole.

    Args:
        folder: where it is.
        text: its content.
    """

    def __init__(self, folder: Path, text: str) -> None:
        self._path = folder / "bare.json"
        self._temporary = folder / "bare.tmp"
        self._text = text

    def write(self) -> None:
        """Write a new file and rename it over the old one."""
        self._temporary.write_text(self._text, "ascii")
        self._temporary.replace(self._path)


_TABLE = "CREATE TABLE bare (id text PRIMARY KEY, fence text NOT NULL, snapshot text)"
_ROW = "INSERT INTO bare VALUES ('benchmark', ?, NULL)"
_UPDATE = "UPDATE bare SET snapshot = ? WHERE id = ? AND fence = ?"


class BarePostgres:
    """Calls of psycopg with the texts of one save, on a table without more than they need.

    Args:
        url: of the database.
        fence: the text to compare.
        text: the text to set.
    """

    def __init__(self, url: str, fence: str, text: str) -> None:
        import psycopg  # here, because each worker imports this module

        self._update = _UPDATE.replace("?", "%s")
        self._values = cycle([(one, "benchmark", fence) for one in alternate(text)])
        connection = psycopg.connect(url, autocommit=True)
        connection.execute(_TABLE)
        connection.execute(_ROW.replace("?", "%s"), (fence,))
        self._cursor = connection.cursor()
        self._committing = psycopg.connect(url)

    def update(self) -> None:
        """UPDATE with autocommit: one round trip."""
        if self._cursor.execute(self._update, next(self._values)).rowcount != 1:
            raise AssertionError("the fence did not match")

    def update_and_commit(self) -> None:
        """UPDATE and COMMIT, psycopg's default: three round trips."""
        self._committing.execute(self._update, next(self._values))
        self._committing.commit()


class BareSQLite:
    """Calls of sqlite3 with the texts of one save, over a connection that stays open.

    Args:
        path: of the file.
        fence: the text to compare.
        text: the text to set.
    """

    def __init__(self, path: Path, fence: str, text: str) -> None:
        self._values = cycle([(one, "benchmark", fence) for one in alternate(text)])
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute(_TABLE)
        self._connection.execute(_ROW, (fence,))

    def update(self) -> None:
        """UPDATE with autocommit."""
        if self._connection.execute(_UPDATE, next(self._values)).rowcount != 1:
            raise AssertionError("the fence did not match")
