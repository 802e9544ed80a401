"""Private servers: own ports, own folders, ended with the test run."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from pytest_celery import RabbitMQContainer, RedisContainer

from tests.support.processes import LocalProcess, free_port


class _Local:
    """pytest-celery builds a container's URL for a docker network; here it is a port of this machine."""

    _container: LocalProcess

    @property
    def port(self) -> int:
        assert self._container.port is not None
        return self._container.port

    @property
    def url(self) -> str:
        return str(self.host_url)  # type: ignore[attr-defined]


class LocalRedis(_Local, RedisContainer):  # type: ignore[misc]
    """redis-server."""


class LocalRabbitMQ(_Local, RabbitMQContainer):  # type: ignore[misc]
    """A RabbitMQ node."""


def missing() -> dict[str, str]:
    """Return what has to be installed for which ring, where it is not."""
    found = {
        "redis": shutil.which("redis-server"),
        "rabbitmq": Path("/usr/lib/rabbitmq/bin/rabbitmq-server").exists() and shutil.which("epmd"),
        "postgresql": _postgres_binaries(),
        "chromium": shutil.which("chromium"),
    }
    packages = {
        "redis": "redis-server",
        "rabbitmq": "rabbitmq-server",
        "postgresql": "postgresql",
        "chromium": "chromium",
    }
    return {name: packages[name] for name, where in found.items() if not where}


def start_redis(folder: Path, *options: str, durable: bool = False) -> LocalProcess:
    """A Redis server; with ``durable``, acknowledged writes are on disk."""
    port = free_port(at_most=55_535)  # as a server of a cluster it also listens 10,000 ports above
    argv = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    argv += ["--appendonly", "yes", "--appendfsync", "always"] if durable else ["--appendonly", "no"]
    argv += options
    server = LocalProcess(argv, folder, name="redis", port=port)
    server.await_log("Ready to accept connections")
    return server


def start_epmd(folder: Path) -> LocalProcess:
    """The port mapper that Erlang nodes need; in the foreground, or each node would leave one behind."""
    port = free_port()
    argv = ["epmd", "-port", str(port), "-address", "127.0.0.1"]
    return LocalProcess(argv, folder, name="epmd", port=port, env={"PATH": os.environ["PATH"]}, user=_rabbit_user())


def start_rabbitmq(folder: Path, epmd: LocalProcess) -> LocalProcess:
    port = free_port()
    for part in ("mnesia", "log", "home"):
        (folder / part).mkdir()
    (folder / "enabled_plugins").write_text("[].")
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\n"
        "log.console = true\nlog.console.level = info\n"
        "vm_memory_high_watermark.relative = 0.2\ndisk_free_limit.absolute = 50MB\n"
    )
    user = _rabbit_user()
    if user:
        account = pwd.getpwnam(user)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid)
    env = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(folder / "home"),
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "ERL_EPMD_PORT": str(epmd.port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none",
    }
    argv = ["/usr/lib/rabbitmq/bin/rabbitmq-server"]  # not the wrapper, which redirects its output
    server = LocalProcess(argv, folder, name="rabbitmq", env=env, user=user, port=port)
    server.await_log("Server startup complete")
    return server


def start_postgres(folder: Path) -> LocalProcess:
    """A PostgreSQL server with a superuser ``test`` and no password; ``folder`` is to be empty."""
    binaries = _postgres_binaries()
    assert binaries is not None
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    data = folder / "data"
    subprocess.run(
        [binaries / "initdb", "-D", data, "-A", "trust", "-U", "test", "-E", "UTF8", "--no-sync"],
        cwd=folder,
        env=env,
        user=user,
        check=True,
        capture_output=True,
    )
    port = free_port()
    options = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": folder,
        "fsync": "off",  # the machine does not crash
        "max_connections": 50,
    }
    argv = [str(binaries / "postgres"), "-D", str(data)]
    for name, value in options.items():
        argv += ["-c", f"{name}={value}"]
    server = LocalProcess(argv, folder, name="postgres", env=env, user=user, port=port)
    server.await_log("database system is ready to accept connections")
    return server


def _postgres_binaries() -> Path | None:
    """Return the folder of the newest PostgreSQL; Debian does not put it into the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    found.append(Path("/usr/local/bin"))
    return next((path for path in found if (path / "initdb").exists() and (path / "postgres").exists()), None)


def _rabbit_user() -> str | None:
    return "rabbitmq" if os.geteuid() == 0 else None
