"""``celery continuations`` on a terminal and in a pipe."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

from tests.support.cluster import ROOT, Cluster

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Shell:
    """Runs commands on a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.env = {
            **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")},
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "TERM": "xterm",
            "TEST_CONF": json.dumps(cluster.conf),
            "TEST_TRACE": str(cluster.trace.path),
        }

    def argv(self, *words: str) -> list[str]:
        celery = str(Path(sys.executable).parent / "celery")
        return [celery, "-A", "tests.integration.project", "continuations", *words]

    def piped(self, *words: str, code: int = 0, **options: Any) -> str:
        ran = subprocess.run(
            self.argv(*words), env=self.env, capture_output=True, text=True, timeout=60, check=False, **options
        )
        assert ran.returncode == code, (ran.stdout, ran.stderr)
        self.errors = ran.stderr
        assert "Traceback" not in ran.stderr
        assert "\x1b" not in ran.stdout + ran.stderr
        return ran.stdout

    def on_terminal(self, *words: str, code: int = 0) -> str:
        """Run on a terminal of 80 columns, and return what it shows."""
        main, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        with subprocess.Popen(self.argv(*words), env=self.env, stdin=terminal, stdout=terminal, stderr=terminal) as ran:
            os.close(terminal)
            shown = b""
            while True:
                try:
                    part = os.read(main, 65536)
                except OSError:  # the last one that wrote has gone
                    break
                if not part:
                    break
                shown += part
        os.close(main)
        text = shown.decode()
        assert ran.returncode == code, text
        for line in re.split(r"[\r\n]+", ESCAPES.sub("", text)):
            assert len(line) <= 80, line
        return text
