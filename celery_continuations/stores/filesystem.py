"""Records in files, for a single machine and no server."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.base import Fence, Record, Store
from celery_continuations.stores.memory import merge

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FilesystemStore"]


_A_DAY = 86400


class FilesystemStore(Store):
    """One file for each record, replaced as a whole under a lock.

    What a kill -9 of a worker leaves is the old file or the new one.  The files are not
    synced to the disk: a crash of the machine itself may lose the last writes.

    Args:
        folder: where the files are; made if it is missing.
        namespace: keeps apart services that share the folder.
    """

    def __init__(self, folder: str | os.PathLike[str], namespace: str) -> None:
        if fcntl is None:  # pragma: no cover - Windows
            raise StoreError("filesystem", "this system has no fcntl.flock")
        self._folder = Path(folder) / f"continuations-{_file_name(namespace)}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StoreError("filesystem", f"cannot make {self._folder}: {exc}") from exc
        self._remove_expired()

    def read(self, task_id: str) -> Record | None:
        """As of Store."""
        path = self._path(task_id)
        try:
            text = path.read_text("ascii")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            raise StoreError("filesystem", f"{path}: {exc}") from exc
        try:
            data = json.loads(text)
            if data["expires"] is not None and data["expires"] < time.time():
                return None
            return Record(Fence.loads(data["fence"]), data["snapshot"], data["message"], data["value"], data["due"])
        except (ValueError, KeyError, TypeError) as exc:
            raise StoreError("filesystem", f"{path} is no record: {exc!r}") from exc

    def swap(
        self,
        task_id: str,
        expected: Fence | None,
        record: Record,
        *,
        due_in: float | None = None,
        expires_in: float | None = None,
    ) -> bool:
        """As of Store."""
        with self._locked(task_id) as path:
            found = self.read(task_id)
            if (found.fence if found else None) != expected:
                return False
            now = time.time()
            whole = merge(found, record, None if due_in is None else now + due_in)
            data = {
                "fence": whole.fence.dumps(),
                "snapshot": whole.snapshot,
                "message": whole.message,
                "value": whole.value,
                "due": whole.due,
                "expires": None if expires_in is None else now + expires_in,
            }
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(data), "ascii")
            temporary.replace(path)
            return True

    def delete(self, task_id: str, expected: Fence) -> bool:
        """As of Store."""
        with self._locked(task_id) as path:
            found = self.read(task_id)
            if found is None or found.fence != expected:
                return False
            path.unlink()
            return True

    def _remove_expired(self) -> None:
        """Remove what has expired.  No tombstone does within a day, so younger files are not even opened."""
        for path in self._folder.glob("*.json"):
            with suppress(
                OSError, StoreError, ValueError, KeyError, TypeError
            ):  # what is no record is not ours to judge
                if path.stat().st_mtime < time.time() - _A_DAY:
                    with self._locked(path.stem):
                        expires = json.loads(path.read_text("ascii"))["expires"]
                        if expires is not None and expires < time.time():
                            path.unlink()

    def _path(self, task_id: str) -> Path:
        return self._folder / f"{_file_name(task_id)}.json"

    @contextmanager
    def _locked(self, task_id: str) -> Iterator[Path]:
        path = self._path(task_id)
        # One lock for every 256th record: their number stays small, and none is ever deleted,
        # which would hand the same lock to two holders.
        lock = self._folder / f"{hashlib.sha256(path.name.encode()).hexdigest()[:2]}.lock"
        try:
            with open(lock, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield path
        except OSError as exc:
            with suppress(OSError):
                path.with_suffix(f".{os.getpid()}").unlink()
            raise StoreError("filesystem", f"{path}: {exc}") from exc


def _file_name(text: str) -> str:
    """Return a name that any file system takes, different for different texts."""
    if text.replace("-", "").isalnum() and text.isascii() and text.islower() and len(text) <= 64:
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:32]
