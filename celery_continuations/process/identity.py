"""Identify processes, so that other processes can check whether they are alive.

The identity is part of a worker's id and of a record's owner:

    worker   MACHINE.PID.START.RANDOM
    owner    WORKER/PID.START/RANDOM

MACHINE identifies a boot of a kernel and a PID namespace: a host name proves nothing in containers.  START is the
process's start time, because pids are reused.  On another machine, or without /proc, nothing can be proved, and the
lease decides.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache

__all__ = ["is_gone", "is_running", "new_owner", "new_worker", "runs_in"]

_ENDED = ("Z", "X")


def new_worker() -> str:
    """Return an id for a worker whose main process is this one."""
    return f"{_machine()}.{_this_process()}.{os.urandom(2).hex()}"


def new_owner(worker: str) -> str:
    """Return the owner for an execution of ``worker`` in this process."""
    return f"{worker}/{_this_process()}/{os.urandom(3).hex()}"


def is_gone(name: str) -> bool:
    """Whether a worker, or the process of an owner, has provably ended.

    >>> is_gone(new_worker()), is_gone(new_owner(new_worker()))
    (False, False)
    >>> is_gone("another-machine.1.1.abc")
    False
    """
    worker, _, rest = name.partition("/")
    machine, _, process = worker.partition(".")
    if machine != _machine():
        return False
    main = process.rpartition(".")[0]
    child = rest.partition("/")[0]
    return _has_ended(main) or (bool(child) and _has_ended(child))


def runs_in(owner: str, worker: str, pid: int | str | None) -> bool:
    """Whether an owner is an execution of that worker, in its process of that pid.

    >>> worker = new_worker()
    >>> runs_in(new_owner(worker), worker, os.getpid()), runs_in(new_owner(worker), worker, None)
    (True, False)
    """
    of, _, rest = owner.partition("/")
    return of == worker and rest.partition(".")[0] == str(pid)


def is_running(pid: int) -> bool:
    """Whether a process with that pid exists and has not ended; False without /proc."""
    found = _stat(pid)
    return found is not None and found[0] not in _ENDED


@cache
def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        identity = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux, or /proc is hidden: a unique machine
        identity = os.urandom(16).hex()
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def _this_process() -> str:
    pid = os.getpid()
    return f"{pid}.{_start_of(pid)}"


@cache
def _start_of(pid: int) -> str:
    """Return the start time of a living process; cached by pid, which changes with a fork."""
    found = _stat(pid)
    return found[1] if found else "0"


# The longest number of an owner that is looked up; Linux has at most seven digits.
_LONGEST_PID = 19


def _has_ended(process: str) -> bool:
    pid, _, start = process.partition(".")
    if not (pid.isascii() and pid.isdigit()) or len(pid) > _LONGEST_PID or start in ("", "0"):
        return False
    try:
        found = _stat(int(pid))
    except PermissionError:  # hidepid=1: the process belongs to another user
        return False
    if found is None:
        return _sees_all()
    return found[0] in _ENDED or found[1] != start


@cache
def _sees_all() -> bool:
    """Whether /proc also shows other users' processes: with hidepid=2 (proc(5)) a missing entry proves nothing."""
    return os.path.exists("/proc/1/stat")


def _stat(pid: int) -> tuple[str, str] | None:
    """Return state and start time, in clock ticks since boot (proc_pid_stat(5)), or None without a process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # a command's name may contain spaces and brackets
    except (FileNotFoundError, ProcessLookupError):  # the second if the process ends during the read
        return None
    return fields[0].decode(), fields[19].decode()
