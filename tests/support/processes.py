"""Processes of this machine in place of containers.

pytest-celery's classes talk to the object that they wrap by a few public methods of the docker
SDK's Container; :class:`LocalProcess` has the same ones, over a process of its own.
"""

from __future__ import annotations

import os
import pwd
import shlex
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Seconds for anything that a test waits for, before it fails.
PATIENCE = 30.0


def free_port(at_most: int = 65_535) -> int:
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
        if port <= at_most:
            return port


def await_condition(condition: Callable[[], Any], what: str, *, within: float = PATIENCE) -> Any:
    """Return the first true value of ``condition``; fail, naming ``what``, when none comes in time."""
    until = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"not within {within:.0f} s: {what}")
        time.sleep(0.01)


class LocalProcess:
    """A child process that looks like a container.

    Args:
        argv: its command; ``%h`` stands for the host name that docker would give it.
        folder: where it runs and writes its log.
        env: added to this process's environment; or the whole of it, with ``user``.
        user: whose rights it gets.
        port: the port that it listens on.
    """

    def __init__(
        self,
        argv: Sequence[str],
        folder: Path,
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        port: int | None = None,
    ) -> None:
        self.id = uuid.uuid4().hex
        self.name = name
        self.argv = [part.replace("%h", self.id[:12]) for part in argv]
        self.folder = folder
        self.user = user
        self.env = dict(env or {}) if user else {**os.environ, **(env or {})}
        self.status = "created"
        ports = {f"{port}/tcp": [{"HostPort": str(port)}]} if port else {}
        self.attrs: dict[str, Any] = {
            "Config": {"Hostname": "127.0.0.1", "Env": [f"{key}={value}" for key, value in (env or {}).items()]},
            "NetworkSettings": {"Networks": {}, "Ports": ports},
            "HostConfig": {"PortBindings": {}},
        }
        self.port = port
        self.process: subprocess.Popen[bytes]
        self._log = folder / f"{name}-{self.id[:8]}.log"
        self.start()

    # -- what a docker Container has

    def reload(self) -> None:
        code = self.process.poll()
        self.status = "running" if code is None else "exited"
        self.attrs["State"] = {"Status": self.status, "Pid": self.process.pid, "ExitCode": code}

    def kill(self, signal: str | int | None = None) -> None:
        number = _signal_number(signal)
        if number == 9:  # killing a container kills all its processes
            self._kill_group()
            self.process.wait(PATIENCE)
        else:
            self.process.send_signal(number)

    def restart(self, timeout: float = PATIENCE) -> None:
        self.end(timeout)
        self.start()

    def logs(self, **kwargs: Any) -> bytes:
        return self._log.read_bytes()

    def exec_run(self, cmd: str | Sequence[str], **kwargs: Any) -> tuple[int, bytes]:
        argv = shlex.split(cmd) if isinstance(cmd, str) else list(cmd)
        done = subprocess.run(argv, cwd=self.folder, env=self.env, capture_output=True, check=False)
        return done.returncode, done.stdout + done.stderr

    # -- what a test needs in addition

    def start(self) -> None:
        account = pwd.getpwnam(self.user) if self.user else None
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
        self.reload()

    @property
    def text(self) -> str:
        return self.logs().decode(errors="replace")

    def await_log(self, text: str, *, times: int = 1) -> None:
        def there() -> bool:
            if self.process.poll() is not None and self.text.count(text) < times:
                raise AssertionError(f"{self.name} exited {self.process.returncode} before {text!r}:\n{self.text}")
            return self.text.count(text) >= times

        try:
            await_condition(there, f"{text!r} in the log of {self.name}")
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.text}") from None

    def signal_group(self, number: int) -> None:
        """Signal all its processes, like systemd by default, and Ctrl-C in a shell."""
        os.killpg(self.process.pid, number)

    def await_exit(self, within: float = PATIENCE) -> int:
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not exit within {within} s:\n{self.text}") from None

    def end(self, timeout: float = 2.0) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                pass
        self._kill_group()
        self.process.wait(PATIENCE)
        self.reload()

    def _kill_group(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _signal_number(name: str | int | None) -> int:
    if name is None:
        return int(signal.SIGKILL)
    if isinstance(name, int):
        return name
    return int(getattr(signal, name if name.startswith("SIG") else f"SIG{name}"))
