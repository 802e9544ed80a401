"""The arguments of a rehearsed run, as a message carries them."""

from __future__ import annotations

import pickle
import sys
from contextlib import suppress
from typing import Any

from celery_continuations.core import codec
from celery_continuations.messages.body import Body, written

__all__ = ["Sent"]


class Sent:
    """A message with the arguments of a task, from which each execution gets new objects."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self._read: bytes | None = None

    @classmethod
    def of(cls, task: Any, args: Any, kwargs: Any) -> Sent:
        """Write arguments with the serializer of the task.  Raises EncodeError."""
        args, kwargs = list(args or ()), dict(kwargs or {})
        if "freezegun" in sys.modules:
            args, kwargs = _with_real_dates([args, kwargs])
        return cls(written(args, kwargs, {}, task.serializer or task.app.conf.task_serializer))

    def arguments(self) -> tuple[Any, Any]:
        """Return args and kwargs; copies by pickle, which is much faster than reading JSON again."""
        if self._read is not None:
            args, kwargs = pickle.loads(self._read)
            return args, kwargs
        args, kwargs, _ = self.body.decode()
        with suppress(Exception):  # whatever a type raises that cannot be copied; it is read again each time
            self._read = pickle.dumps((args, kwargs))
        return args, kwargs


def _with_real_dates(value: Any) -> Any:
    """Replace dates of freezegun, which not every serializer takes, by real ones."""
    if type(value) in (list, tuple):
        return type(value)(map(_with_real_dates, value))
    if type(value) is dict:
        return {_with_real_dates(key): _with_real_dates(one) for key, one in value.items()}
    return codec.copy(value) if codec.real_type(type(value)) is not type(value) else value
