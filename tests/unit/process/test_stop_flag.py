"""A worker's stop flag, in shared memory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from celery_continuations.process import stop_flag as flags


def test_a_flag_is_seen_through_its_file_and_only_goes_up() -> None:
    flag = flags.new_flag("a@test")
    other = flags.StopFlag(flag.path)
    assert other.level == flags.RUNNING
    flag.raise_to(flags.COLD)
    flag.raise_to(flags.STOPPING)
    assert other.level == flags.COLD
    flag.remove()
    assert not Path(flag.path).exists()
    assert other.level == flags.COLD, "processes that have mapped it still see it"


def test_a_flag_is_seen_by_forked_children_and_not_removed_by_them() -> None:
    flag = flags.new_flag("fork@test")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        flag.remove()
        while not flags.flag_at(flag.path).level:
            time.sleep(0.001)
        os.write(write, b"seen")
        os._exit(0)
    assert Path(flag.path).exists()
    flag.raise_to(flags.STOPPING)
    assert os.read(read, 4) == b"seen"
    os.waitpid(child, 0)
    flag.remove()


def test_a_worker_of_the_same_name_starts_with_its_flag_down() -> None:
    first = flags.new_flag("again@test")
    first.raise_to(flags.STOPPING)
    second = flags.new_flag("again@test")
    found = flags.flag_of("again@test")
    assert found is second
    assert second.level == flags.RUNNING
    first.remove()
    second.remove()


def test_the_flag_of_a_worker_that_has_ended_is_up() -> None:
    assert flags.flag_at("/no/such/flag").level == flags.STOPPING


def test_without_a_worker_nothing_stops(monkeypatch: Any) -> None:
    monkeypatch.delenv("CELERY_CONTINUATIONS_FLAG", raising=False)
    assert flags.flag_at(None).level == flags.RUNNING


def test_a_worker_killed_with_9_leaves_no_flag_behind_for_good(tmp_path: Path, monkeypatch: Any) -> None:
    # A folder of its own: each worker that starts on this machine removes abandoned flags.
    monkeypatch.setattr(flags, "_SHARED_MEMORY", str(tmp_path))
    code = f"""
from celery_continuations.process import stop_flag as flag
import os
flag._SHARED_MEMORY = {str(tmp_path)!r}
print(flag.new_flag("killed@test").path, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    left = Path(done.stdout.strip())
    assert left.exists()
    living = flags.new_flag("next@test")
    assert not left.exists()
    newest = flags.new_flag("another@test")
    assert Path(living.path).exists(), "a living worker's flag stays"
    living.remove()
    newest.remove()


def test_workers_that_start_at_once_leave_each_others_flags_alone() -> None:
    code = """
import os
from celery_continuations.process.stop_flag import new_flag
made = [new_flag(f"{n}@test") for n in range(100)]
print(sum(os.path.exists(flag.path) for flag in made))
for flag in made:
    flag.remove()
"""
    racing = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in racing] == ["100"] * 4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_file_system_is_named(monkeypatch: Any, tmp_path: Path, number: int) -> None:
    def full(*args: Any) -> None:
        raise OSError(number, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(flags, "_SHARED_MEMORY", str(tmp_path))
    problem = f"{tmp_path} is full, and the worker's stop flag needs 88 bytes in it; free some space, or give"
    with pytest.raises(OSError, match=problem) as caught:
        flags.new_flag("full@test")
    assert caught.value.errno == number
    assert list(tmp_path.iterdir()) == [], "nothing is left there"


def test_a_file_system_that_cannot_reserve_space_is_used(monkeypatch: Any) -> None:
    def refuses(*args: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuses)
    flag = flags.new_flag("odd@test")
    assert flags.StopFlag(flag.path).worker == flag.worker
    flag.remove()


def test_links_pipes_and_files_of_others_are_not_touched(tmp_path: Path, monkeypatch: Any) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"x" * 80)
    link, pipe, other = (tmp_path / f"celery-continuations-{name}" for name in ("link", "pipe", "other"))
    link.symlink_to(target)
    os.mkfifo(pipe)
    other.write_bytes(b"")
    locked: list[Any] = []
    monkeypatch.setattr(flags, "_lock", lambda fd: locked.append(fd) or True)
    user = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: user + 1)
        flags._remove_abandoned(str(tmp_path))
    assert not locked
    flags._remove_abandoned(str(tmp_path))
    assert [path.is_symlink() or path.exists() for path in (link, pipe, other)] == [True, True, False]
    with pytest.raises(OSError, match="symbolic links"):
        flags.StopFlag(str(link))
