"""Files of one user: private folders, locks that no child keeps, replaced files, and what is removed later."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from celery_continuations.exceptions import StoreError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Endings", "locked", "make_private", "write"]

# A file that has been written for longer than this many seconds was left by a killed writer.
_ABANDONED = 600.0

# Seconds between two looks for abandoned files, and for times that have passed.
_LOOK_EVERY = 60.0
_LOOK_AGAIN = 1.0

# Records that expire in the same fraction of their time share a folder of marks, so that there are few folders.
_FRACTION = 16

# The mark that all records of a store of version 0.1 that expire have been marked.
_ALL = "all"


def make_private(folder: Path) -> None:
    """Make a folder that only this user can read; refuse one that others may have prepared.

    Raises:
        StoreError: when it belongs to another user, or others can write in it.
        OSError: when it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(0o700, exist_ok=True)
    user = os.geteuid()
    for found in (os.lstat(folder), os.stat(folder)):  # a link, and what it leads to
        if found.st_uid != user:
            raise StoreError(
                "filesystem",
                f"{folder} belongs to user {found.st_uid}, this process runs as user {user}: run all processes of the "
                "service as one user, or choose another folder in continuation_store",
            )
    if found.st_mode & 0o002:
        raise StoreError(
            "filesystem",
            f"other users can write in {folder}: if you trust its files, run chmod -R go-rwx {folder}; "
            "otherwise remove it",
        )
    if found.st_mode & 0o077:  # version 0.1 made it readable by all users
        folder.chmod(0o700)


# The locks that this process holds or waits for. A forked child closes its copies: the lock of an open file lasts until
# the last copy is closed, so a child would keep it for as long as it lives.
_held: set[FileIO] = set()
_changing = threading.RLock()


def _after_fork() -> None:
    for file in _held:
        file.close()
    _held.clear()
    _changing.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_after_fork)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is created if missing.

    Raises:
        StoreError: on systems without such locks.
        OSError: when the file cannot be opened.
    """
    if fcntl is None:  # pragma: no cover - Windows
        raise StoreError("filesystem", "this system has no fcntl.flock")
    with _changing:
        file = FileIO(path, "ab", opener=_private)
        _held.add(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        with _changing:
            _held.discard(file)
            file.close()


def write(path: Path, text: str, folder: Path) -> None:
    """Replace a file as a whole; ``folder`` has the new one while it is written.

    Raises:
        OSError: when it cannot be written.
    """
    temporary = folder / f"{path.name}.{os.getpid()}.{threading.get_ident()}.{time.monotonic_ns()}"
    try:
        with open(temporary, "x", encoding="ascii", opener=_private) as file:
            file.write(text)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


class Endings:
    """The marks of the records that expire, in one folder for each time.

    Removing what has expired costs the same however many records there are.

    Args:
        folder: the folder of the store.
        remove: removes the record of that name if it has expired.
        expires: returns when the record in a file expires, or None.
    """

    def __init__(self, folder: Path, remove: Callable[[str], None], expires: Callable[[Path], float | None]) -> None:
        self._marks, self._writing = folder / "ending", folder / "writing"
        self._remove = remove
        self._past: list[int] = []  # the times that have passed, the earliest last
        self._expired: list[Path] = []
        self._lock = threading.Lock()
        self._look_at = self._tidy_at = 0.0
        if not (self._marks / _ALL).exists():
            self._mark_all(folder, expires)

    def add(self, name: str, now: float, seconds: float) -> None:
        """Mark a record that expires in ``seconds``."""
        size = 2 ** max(0, int(math.log2(max(seconds, 1) / _FRACTION)))
        folder = self._marks / str(math.ceil((now + seconds) / size) * size)
        while True:
            folder.mkdir(0o700, parents=True, exist_ok=True)
            try:
                (folder / name).touch(0o600)
                return
            except FileNotFoundError:
                continue  # another process has just removed the empty folder

    def clean(self, most: int) -> None:
        """Remove at most ``most`` expired records, and from time to time what killed writers left."""
        if not self._lock.acquire(blocking=False):
            return  # another thread does it, or did when this process was forked
        try:
            if time.monotonic() >= self._tidy_at:
                self._tidy_at = time.monotonic() + _LOOK_EVERY
                remove_abandoned(self._writing)
            for _ in range(most):
                if not self._expired and not self._find():
                    return
                mark = self._expired.pop()
                # A record that cannot be removed stays, and lists name it: it must not keep the others, nor fail what
                # this process has just written.
                with suppress(OSError, StoreError):
                    self._remove(mark.name)
                with suppress(OSError):
                    mark.unlink(missing_ok=True)
        finally:
            self._lock.release()

    def _find(self) -> bool:
        """Find the marks of the earliest time that has passed."""
        if not self._past:
            if time.monotonic() < self._look_at:
                return False
            self._look_at = time.monotonic() + _LOOK_AGAIN
            now = time.time()
            ends = (int(name) for name in os.listdir(self._marks) if name.isdecimal())
            self._past = sorted((end for end in ends if end <= now), reverse=True)
        while self._past:
            folder = self._marks / str(self._past[-1])
            with suppress(FileNotFoundError):  # another process has just removed it
                self._expired = [folder / name for name in os.listdir(folder)]
                if self._expired:
                    return True
                with suppress(OSError):  # not empty by now
                    folder.rmdir()
            self._past.pop()
        return False

    def _mark_all(self, folder: Path, expires: Callable[[Path], float | None]) -> None:
        """Mark the records of version 0.1, which made no marks, and remove what its killed writers left."""
        self._marks.mkdir(0o700, exist_ok=True)
        for path in folder.glob("*.json"):
            end = expires(path)
            if end is not None:
                self.add(path.stem, time.time(), end - time.time())
        for found in (folder, folder / "leases"):
            remove_abandoned(found, "*.*.*")
        (self._marks / _ALL).touch(0o600)


def remove_abandoned(folder: Path, pattern: str = "*") -> None:
    """Remove the files of a pattern that have not been written to for long."""
    for path in folder.glob(pattern):
        with suppress(OSError):  # renamed just now
            if path.stat().st_mtime < time.time() - _ABANDONED:
                path.unlink()
