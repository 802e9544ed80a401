"""The bare calls that a saved checkpoint is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["BareFile", "BareRedis"]

# The least that refuses an execution which has been succeeded by another.
_COMPARE_AND_SET = """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'snapshot', ARGV[2])
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
        self._text = text
        self._compare_and_set = client.script_load(_COMPARE_AND_SET)
        self._nothing = client.script_load(_NOTHING)
        client.hset("benchmark:hash", "fence", fence)

    def set(self) -> None:
        """SET."""
        self._client.set("benchmark:text", self._text)

    def evalsha(self) -> None:
        """EVALSHA of a script that does nothing with the texts."""
        self._client.evalsha(self._nothing, 1, "benchmark:hash", self._fence, self._text)

    def compare_and_set(self) -> None:
        """EVALSHA of the smallest script that compares the fence and sets the text."""
        if not self._client.evalsha(self._compare_and_set, 1, "benchmark:hash", self._fence, self._text):
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
