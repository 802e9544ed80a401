"""How other tasks have ended, as the result backend knows it.

Reading is separate from decoding: an error of the connection says nothing about a task, and an error of decoding
belongs to one task.
"""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from celery import states
from celery.backends.base import KeyValueStoreBackend
from celery.exceptions import Ignore
from kombu.exceptions import ContentDisallowed, DecodeError, SerializerNotInstalled
from kombu.utils.encoding import bytes_to_str

from celery_continuations import celery_internals
from celery_continuations.exceptions import ChildError

__all__ = ["BackendUnavailable", "End", "NotEnded", "ends_of", "error_of", "note_end", "store_end", "without_result"]

T = TypeVar("T")

# How many results are read at a time.
_CHUNK = 250

# What reading a stored result may raise because of its content, in backends that decode what they read.
_UNREADABLE = (
    ContentDisallowed, DecodeError, SerializerNotInstalled, pickle.UnpicklingError,
    ValueError, TypeError, LookupError, AttributeError, ImportError,
)  # fmt: skip


class NotEnded(Ignore):  # type: ignore[misc,unused-ignore]
    """End this execution of a task, without ending the task."""


class BackendUnavailable(Exception):
    """The result backend could not be read or written."""


class End(NamedTuple):
    """The end of a task: its value, or its error.

    Attributes:
        value: what the task has returned.
        error: what it has raised, or why its value is missing; None if it has one.
    """

    value: Any = None
    error: Exception | None = None


def ends_of(backend: Any, ids: Sequence[str]) -> dict[str, End]:
    """Return the ends of the tasks that have ended, by id, each question for many tasks.

    Raises:
        BackendUnavailable: when the backend does not answer.
    """
    found: dict[str, End] = {}
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        ended = dict(_stored(backend, chunk))
        # A task that ends without a result leaves a note.
        notes = {_note_id(task_id): task_id for task_id in chunk if task_id not in ended}
        for note_id, note in _stored(backend, list(notes)):
            task_id = notes[note_id]
            ended[task_id] = End(error=ChildError(task_id, str(note.value)))
        found.update(ended)
    return found


def note_end(backend: Any, task_id: str, how: str) -> None:
    """Note that a task has ended without a result.  Its own entry in the backend stays as it is.

    Raises:
        BackendUnavailable: when the backend does not answer.
    """
    _ask(partial(backend.store_result, _note_id(task_id), how, states.SUCCESS))


def store_end(backend: Any, task_id: str, result: Any, state: str) -> None:
    """Store the result of a task that ignores its own.

    Raises:
        BackendUnavailable: when the backend does not answer.
    """
    _ask(partial(backend.store_result, task_id, result, state))


def error_of(task_id: str, state: str, result: Any) -> Exception:
    """Return the error to raise for a task that has ended in this state."""
    if isinstance(result, Exception) and celery_internals.is_predicate(result):
        return ChildError(task_id, without_result(result))  # raised in the parent, it would end the parent
    return result if isinstance(result, Exception) else ChildError(task_id, f"ended as {state}: {result!r}")


def without_result(predicate: Any) -> str:
    """Return how a task has ended that raised Ignore or Reject."""
    return f"raised {type(predicate).__name__}, without a result"


def _note_id(task_id: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{task_id} has ended"))


def _stored(backend: Any, ids: list[str] | Sequence[str]) -> Iterator[tuple[str, End]]:
    """Yield the ids and ends of the tasks that have a final state."""
    for task_id, read in _readers(backend, ids):
        try:
            meta = read()
            state, result = meta["status"], meta["result"]
        except BackendUnavailable:
            raise
        except Exception as exc:  # whatever decoding the result raises
            yield task_id, End(error=ChildError(task_id, f"has a result that cannot be read: {exc!r}"))
            continue
        if state == states.SUCCESS:
            yield task_id, End(result)
        elif state in states.READY_STATES:
            yield task_id, End(error=error_of(task_id, state, result))


def _readers(backend: Any, ids: Sequence[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield each task that may have a result, with a function that returns it decoded."""
    if not ids:
        return
    if not isinstance(backend, KeyValueStoreBackend):
        for task_id in ids:
            yield task_id, partial(_ask, partial(backend.get_task_meta, task_id, cache=False), _UNREADABLE)
        return
    keys = [backend.get_key_for_task(task_id) for task_id in ids]
    for task_id, text in zip(ids, _ask(partial(_texts, backend, keys)), strict=True):
        if text:
            yield task_id, partial(backend.decode_result, text)


def _texts(backend: Any, keys: list[Any]) -> list[Any]:
    found = backend.mget(keys)
    if not hasattr(found, "items"):
        return list(found)
    by_key = {bytes_to_str(key): text for key, text in found.items()}
    return [by_key.get(bytes_to_str(key)) for key in keys]


def _ask(question: Callable[[], T], unreadable: tuple[type[Exception], ...] = ()) -> T:
    """Ask the backend; let only the errors ``unreadable`` pass."""
    try:
        return question()
    except unreadable:
        raise
    except Exception as exc:  # each backend has errors of its own
        raise BackendUnavailable(f"the result backend is unavailable: {exc!r}") from exc
