"""What a worker's main process shares with its tasks: whether to stop, its id, and when its lease expires.

A small file, mapped by the main process and its pool children.  It is not anonymous memory, because children of the
spawn start method do not inherit that.
"""

from __future__ import annotations

import atexit
import errno
import mmap
import os
import stat
import struct
import tempfile
import time
from contextlib import suppress
from glob import glob

from celery_continuations.process.identity import new_worker

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["COLD", "RUNNING", "STOPPING", "StopFlag", "flag_at", "flag_of", "new_flag"]

RUNNING, STOPPING, COLD = 0, 1, 2

# The level; how often the lease has expired, in one byte; the end of the lease by time.monotonic, which is the same for
# all processes of a machine, or 0 without a lease; the time at which the level was raised first; and the worker's id.
_TIME = struct.Struct("d")
_LAPSES_AT, _LEASE_AT, _STOPPED_AT, _WORKER_AT, _SIZE = 1, 8, 16, 24, 88

# A read-only root file system still has /dev/shm.
_SHARED_MEMORY = "/dev/shm"

_PREFIX = "celery-continuations-"

# For tasks with their own Request class, whose requests do not carry the path.
_VARIABLE = "CELERY_CONTINUATIONS_FLAG"


class StopFlag:
    """A level: ``RUNNING``, ``STOPPING`` (at the next checkpoint) or ``COLD`` (immediately).

    Args:
        path: the file; created if ``worker`` is given.
        worker: the worker's id, in its main process.

    Attributes:
        worker: the worker's id.
    """

    def __init__(self, path: str, worker: str | None = None) -> None:
        self.path = path
        create = worker is not None
        # O_NONBLOCK: a device or a pipe in its place must not act on being opened
        mode = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT | os.O_TRUNC if create else 0)
        fd = os.open(path, mode, 0o600)
        try:
            if create:
                _allocate(fd, path)
            self._map = mmap.mmap(fd, _SIZE)
        finally:
            os.close(fd)
        self._maker = os.getpid() if create else None
        if worker is not None:
            self._map[_WORKER_AT:] = worker.encode("ascii").ljust(_SIZE - _WORKER_AT, b"\0")
        self.worker = bytes(self._map[_WORKER_AT:]).rstrip(b"\0").decode("ascii")

    @property
    def level(self) -> int:
        """``RUNNING``, ``STOPPING`` or ``COLD``."""
        return self._map[0]

    def raise_to(self, level: int) -> None:
        """Raise the level; it is never lowered."""
        if self._map[0] == RUNNING < level:
            self._map[_STOPPED_AT:_WORKER_AT] = _TIME.pack(time.monotonic())
        if self._map[0] < level:
            self._map[0] = level

    @property
    def stopped_at(self) -> float:
        """When the level was raised, by ``time.monotonic``; 0 if it was not."""
        return float(_TIME.unpack(self._map[_STOPPED_AT:_WORKER_AT])[0])

    def extend_lease(self, until: float) -> None:
        """Note that the worker's lease expires at ``until``, by ``time.monotonic``."""
        if self.lease_is_over:
            self._map[_LAPSES_AT] = (self._map[_LAPSES_AT] + 1) % 256
        self._map[_LEASE_AT:_STOPPED_AT] = _TIME.pack(until)

    @property
    def lapses(self) -> int:
        """How often the lease had expired when it was renewed, modulo 256."""
        return self._map[_LAPSES_AT]

    @property
    def lease_is_over(self) -> bool:
        """Whether the worker's lease has expired, so that other workers may have recovered its tasks."""
        (until,) = _TIME.unpack(self._map[_LEASE_AT:_STOPPED_AT])
        return bool(0 < until < time.monotonic())

    def remove(self) -> None:
        """Remove the file; processes that have mapped it still see it."""
        if self._maker == os.getpid():
            self._maker = None
            with suppress(FileNotFoundError):
                os.unlink(self.path)
            for hostname, flag in list(_by_hostname.items()):
                if flag is self:
                    del _by_hostname[hostname]


class _Fixed(StopFlag):
    """A flag without a file, whose level never changes."""

    def __init__(self, level: int) -> None:
        self.path = self.worker = ""
        self._maker = None
        self._map = bytearray(_SIZE)  # type: ignore[assignment]
        self._map[0] = level


_by_hostname: dict[str, StopFlag] = {}
_by_path: dict[str, StopFlag] = {}


def new_flag(hostname: str) -> StopFlag:
    """Create the flag of a worker that starts in this process."""
    folder = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else tempfile.gettempdir()
    _remove_abandoned(folder)
    path = _locked_file(folder)
    flag = StopFlag(path, new_worker())
    _by_hostname[hostname] = _by_path[path] = flag
    os.environ[_VARIABLE] = path
    atexit.register(flag.remove)
    return flag


def _remove_abandoned(folder: str) -> None:
    """Remove the flags of killed workers: their locks are no longer held."""
    for path in glob(f"{folder}/{_PREFIX}*"):
        with suppress(OSError):  # another user's, or just removed
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if _is_own_file(fd) and _lock(fd):
                    os.unlink(path)
            finally:
                os.close(fd)


def _allocate(fd: int, path: str) -> None:
    """Give the file its size, with space for it: in a full file system a later write would end the process (SIGBUS).

    Raises:
        OSError: when the file system is full.
    """
    os.ftruncate(fd, _SIZE)
    if not hasattr(os, "posix_fallocate"):  # pragma: no cover - macOS
        return
    try:
        os.posix_fallocate(fd, 0, _SIZE)
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            return  # a file system that cannot reserve space
        os.unlink(path)
        folder = os.path.dirname(path)
        problem = f"{folder} is full, and the worker's stop flag needs {_SIZE} bytes in it; free some space"
        if folder == _SHARED_MEMORY:
            problem += ", or give the container a larger one (docker run --shm-size, an emptyDir of medium Memory)"
        raise OSError(exc.errno, problem) from exc


def _is_own_file(fd: int) -> bool:
    found = os.fstat(fd)
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def _locked_file(folder: str) -> str:
    """Create a file that stays locked while this process or one of its forked children lives."""
    while True:
        fd, path = tempfile.mkstemp(prefix=_PREFIX, dir=folder)
        if not _lock(fd, wait=True) or os.fstat(fd).st_nlink:
            return path
        os.close(fd)  # another starting worker took it for abandoned just before it was locked


def _lock(fd: int, *, wait: bool = False) -> bool:
    """Lock a file and return whether it was free; False if locks do not work, so that no file seems abandoned."""
    if fcntl is None:  # pragma: no cover - Windows
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def flag_of(hostname: str) -> StopFlag | None:
    """Return the flag of the newest worker with that name in this process."""
    return _by_hostname.get(hostname)


def flag_at(path: str | None) -> StopFlag:
    """Return the flag at ``path``, or else at the path in the environment."""
    path = path or os.environ.get(_VARIABLE)
    if path is None:
        return _Fixed(RUNNING)  # no worker: something else runs the task
    flag = _by_path.get(path)
    if flag is None:
        try:
            flag = StopFlag(path)
        except FileNotFoundError:
            flag = _Fixed(STOPPING)  # the worker has ended, so its child will end too
        _by_path[path] = flag
    return flag
