"""Private servers other than Redis, shared with the tests.

Not in :mod:`benchmarks.servers`, which every worker imports: pytest is not part of what is measured.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support import servers

__all__ = ["private_postgres", "private_rabbitmq"]


@contextmanager
def private_postgres(*, fsync: bool = False) -> Iterator[str]:
    """Run PostgreSQL; yield the URL of a database in psycopg's form.

    Args:
        fsync: whether a commit waits for the disk; in the tests' server it does not.
    """
    with _open_folder() as folder:
        server = servers.start_postgres(folder)
        try:
            if fsync:
                server.argv = [argument.replace("fsync=off", "fsync=on") for argument in server.argv]
                server.process.send_signal(signal.SIGINT)
                server.await_exit()
                server.start()
                server.await_log("ready to accept connections", times=2)
            yield f"postgresql://test@127.0.0.1:{server.port}/postgres"
        finally:
            server.process.send_signal(signal.SIGINT)  # SIGTERM would wait for clients
            server.end(timeout=10)


@contextmanager
def private_rabbitmq() -> Iterator[str]:
    """Run RabbitMQ; yield its URL."""
    with _open_folder() as folder:
        epmd = servers.start_epmd(folder)
        try:
            server = servers.start_rabbitmq(folder, epmd)
            try:
                yield f"amqp://guest:guest@127.0.0.1:{server.port}//"
            finally:
                server.end(timeout=15)
        finally:
            epmd.end()


@contextmanager
def _open_folder() -> Iterator[Path]:
    """Make a folder that the servers' users can enter."""
    with TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
