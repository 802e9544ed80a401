"""Records in files, for a single machine and no server.

======================  =================================================================
``NAME.json``           a record
``live/NAME``           empty: marks a record for sweeps, whose task has not ended
``ending/TIME/NAME``    empty: marks a record that expires, to be removed after TIME
``leases/NAME``         the lease of a worker
``writing/*``           files that are being written; a killed writer leaves its file
``XX.lock``             256 locks for all records: few enough that none is ever deleted, which
                        would give the same lock to two holders
======================  =================================================================

All are readable by their user only.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.base import LIMIT, Fence, Lease, Record, Scan, Store, Update
from celery_continuations.stores.files import Endings, locked, make_private, write
from celery_continuations.stores.reading import lease_of

__all__ = ["FilesystemStore"]

# How many expired records one write or renewal removes.
_BATCH = 4
_BATCH_OF_RENEWAL = 500


class FilesystemStore(Store):
    """One file for each record, replaced as a whole under a lock.

    If a worker is killed by SIGKILL, either the old or the new file remains.  The files are not synced to the disk: a
    crash of the machine may lose the last writes.

    All processes that use the folder must run as one user.

    Args:
        folder: the folder of the files; created if missing.
        namespace: separates services that share the folder.
    """

    def __init__(self, folder: str | os.PathLike[str], namespace: str) -> None:
        self._folder = Path(folder) / f"continuations-{_file_name(namespace)}"
        self._live, self._leases = self._folder / "live", self._folder / "leases"
        self._writing = self._folder / "writing"
        try:
            make_private(self._folder)
            for made in (self._live, self._leases, self._writing):
                made.mkdir(0o700, exist_ok=True)
            self._endings = Endings(self._folder, self._remove_expired, _expires)
        except OSError as exc:
            raise StoreError("filesystem", f"cannot make {self._folder}: {exc}") from exc

    def read(self, task_id: str) -> Record | None:
        path = self._path(task_id)
        found = _load(path)
        if found is not None and found[0] != task_id:
            raise StoreError("filesystem", f"{path} has the record of task {found[0]!r}, not of {task_id!r}")
        return None if found is None else found[1]

    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        with self._locked(task_id) as path:
            found = self.read(task_id)
            if not update.fits(found, expected):
                return False
            now = time.time()
            if update.expires_in == 0:
                path.unlink(missing_ok=True)
                (self._live / path.stem).unlink(missing_ok=True)
                return True
            whole = update.applied_to(found, now)
            data = {
                "task_id": task_id,
                "fence": whole.fence.dumps(),
                "snapshot": whole.snapshot,
                "message": whole.message,
                "value": whole.value,
                "inbox": whole.inbox,
                "due": whole.due,
                "expires": update.expires(now),
            }
            if update.lasts is not None:
                self._endings.add(path.stem, now, update.lasts)
            # Marked before the write and unmarked after it: a kill in between leaves an extra mark.
            live = bool(whole.fence.worker) or whole.due is not None
            if live:
                (self._live / path.stem).touch(0o600)
            write(path, json.dumps(data), self._writing)
            if not live:
                (self._live / path.stem).unlink(missing_ok=True)
        if update.lasts is not None:
            self._endings.clean(_BATCH)
        return True

    def records(self) -> Iterator[tuple[str, Record | StoreError]]:
        """Yield every record; one that cannot be read comes under its file's name."""
        for name in self._names(self._folder, "json"):
            path = self._folder / name
            try:
                found = _load(path)
            except StoreError as exc:
                yield path.stem, exc
            else:
                if found is not None:
                    yield found

    def renew(self, worker: str, seconds: float, note: str = "") -> None:
        """Renew the lease, and remove expired records and what killed writers left."""
        path = self._leases / _file_name(worker)
        lease = {"worker": worker, "until": time.time() + seconds, "note": note}
        try:
            write(path, json.dumps(lease), self._writing)
        except OSError as exc:
            raise StoreError("filesystem", f"{path}: {exc}") from exc
        self._endings.clean(_BATCH_OF_RENEWAL)

    def retire(self, worker: str) -> None:
        if not any(one is not None and one.fence.worker == worker for _, one in self._read_live()):
            try:
                (self._leases / _file_name(worker)).unlink(missing_ok=True)
            except OSError as exc:
                raise StoreError("filesystem", f"{self._leases}: {exc}") from exc

    def scan(self, worker: str = "", limit: int = LIMIT) -> Scan:
        now = time.time()
        leases, problems = self._read_leases(now)
        due: list[tuple[float, str]] = []
        owned: dict[str, str] = {}
        for task_id, record in self._read_live():
            if record is None:
                due.append((0.0, task_id))  # the sweep reads it, and reports the problem
                continue
            name = record.fence.worker
            if name:
                leases.setdefault(name, Lease(name, 0.0))
            if worker and name == worker:
                owned[task_id] = record.fence.owner
            if record.due is not None and record.due <= now:
                due.append((record.due, task_id))
        return Scan(list(leases.values()), [task_id for _, task_id in sorted(due)[:limit]], owned, tuple(problems))

    def _read_live(self) -> Iterator[tuple[str, Record | None]]:
        """Yield records whose tasks have not ended; None, under its file's name, for one that cannot be read."""
        for name in self._names(self._live):
            try:
                found = _load(self._folder / f"{name}.json")
            except StoreError:
                yield name, None
            else:
                if found is not None:
                    yield found

    def _read_leases(self, now: float) -> tuple[dict[str, Lease], list[str]]:
        """Return the leases by worker, and a sentence about each one whose worker cannot be read."""
        leases = {}
        problems = []
        for name in self._names(self._leases):
            path = self._leases / name
            try:
                data = json.loads(path.read_text("ascii"))
                worker = _text(data["worker"])
            except FileNotFoundError:
                continue  # retired just now
            except (OSError, ValueError, LookupError, TypeError, RecursionError) as exc:
                problems.append(f"{path} is not a lease: {exc!r}")
                continue
            try:
                left = data["until"] - now
            except (LookupError, TypeError, OverflowError):
                left = None
            leases[worker] = lease_of(worker, left, data.get("note"))
        return leases, problems

    @staticmethod
    def _names(folder: Path, suffix: str = "") -> list[str]:
        try:
            return [name for name in os.listdir(folder) if name.partition(".")[2] == suffix]
        except OSError as exc:
            raise StoreError("filesystem", f"{folder}: {exc}") from exc

    def _remove_expired(self, name: str) -> None:
        path = self._folder / f"{name}.json"
        with self._locked_file(path):
            expires = _expires(path)
            if expires is not None and expires <= time.time():
                path.unlink()
                (self._live / name).unlink(missing_ok=True)

    def _path(self, task_id: str) -> Path:
        return self._folder / f"{_file_name(task_id)}.json"

    @contextmanager
    def _locked(self, task_id: str) -> Iterator[Path]:
        with self._locked_file(self._path(task_id)) as path:
            yield path

    @contextmanager
    def _locked_file(self, path: Path) -> Iterator[Path]:
        lock = self._folder / f"{hashlib.sha256(path.name.encode()).hexdigest()[:2]}.lock"
        try:
            with locked(lock):
                yield path
        except OSError as exc:
            raise StoreError("filesystem", f"{path}: {exc}") from exc


def _load(path: Path) -> tuple[str, Record] | None:
    """Return the task's id and its record, or None if there is none or it has expired."""
    try:
        text = path.read_text("ascii")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise StoreError("filesystem", f"{path}: {exc}") from exc
    try:
        data = json.loads(text)
        if data["expires"] is not None and data["expires"] <= time.time():
            return None
        texts = {
            part: None if data[part] is None else _text(data[part])
            for part in ("snapshot", "message", "value", "inbox")
        }
        due = None if data["due"] is None else float(data["due"])
        return str(data["task_id"]), Record(Fence.loads(data["fence"]), **texts, due=due)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as exc:
        raise StoreError("filesystem", f"{path} is not a record: {exc!r}") from exc


def _expires(path: Path) -> float | None:
    """Return when the record expires; None for never, without a record, and for one that cannot be read."""
    try:
        expires = json.loads(path.read_text("ascii"))["expires"]
        return None if expires is None else float(expires)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _file_name(text: str) -> str:
    """Return a file name that every file system accepts, unique for each text."""
    if text.replace("-", "").isalnum() and text.isascii() and text.islower() and len(text) <= 64:
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:32]
