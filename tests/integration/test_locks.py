"""Libraries that lock a task until it has ended: a cancellation releases the lock."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from redis import Redis

from celery_continuations import ContinuableTask, control
from tests.support import servers
from tests.support.processes import await_condition

pytestmark = pytest.mark.redis


@pytest.fixture
def app(redis_server: servers.LocalRedis) -> Celery:
    url = f"redis://127.0.0.1:{redis_server.port}"
    made = Celery("locks", broker=f"{url}/0", backend=f"{url}/1", set_as_current=False)
    made.conf.ONCE = {
        "backend": "celery_once.backends.Redis",
        "settings": {"url": f"{url}/3", "default_timeout": 3600},
    }
    made.conf.singleton_backend_url = f"{url}/4"
    for number in (3, 4):  # other tests use the same server
        Redis.from_url(f"{url}/{number}").flushdb()
    return made


def imported(name: str) -> Any:
    """Import a library of the extra `test`; on a developer's machine it may be missing."""
    return importlib.import_module(name) if os.environ.get("CI") else pytest.importorskip(name)


def once(app: Celery) -> Any:
    library = imported("celery_once")

    class Once(ContinuableTask, library.QueueOnce):  # type: ignore[misc, name-defined]
        abstract = True

        def on_cancel(self, task_id: str, args: Any, kwargs: Any) -> None:
            self.after_return("REVOKED", None, task_id, args, kwargs, None)

    def is_locked(task: Any) -> bool:
        try:
            task.apply_async((7,))
        except library.AlreadyQueued:
            return True
        return False

    return Once, is_locked


def singleton(app: Celery) -> Any:
    library = imported("celery_singleton")

    class Single(ContinuableTask, library.Singleton):  # type: ignore[misc, name-defined]
        abstract = True
        raise_on_duplicate = True

        def on_cancel(self, task_id: str, args: Any, kwargs: Any) -> None:
            self.release_lock(args, kwargs)

    def is_locked(task: Any) -> bool:
        try:
            task.apply_async((7,))
        except library.exceptions.DuplicateTaskError:
            return True
        return False

    return Single, is_locked


@pytest.mark.parametrize("place", ["waiting", "not started"])
@pytest.mark.parametrize("library", [once, singleton])
def test_a_cancellation_releases_the_lock(app: Celery, library: Any, place: str) -> None:
    base, is_locked = library(app)

    @app.task(base=base, bind=True, name="locked", shared=False)
    def locked(self: Any, number: int) -> None:
        self.wait_for("approval")

    result = locked.apply_async((7,))
    assert is_locked(locked)
    if place == "not started":
        control.cancel(result.id, app=app)  # the worker that receives its message calls the hook
    with start_worker(app, pool="solo", concurrency=1, perform_ping_check=False, shutdown_timeout=20):
        if place == "waiting":
            await_condition(lambda: result.status_of_record == "waiting", "the wait")
            assert is_locked(locked)
            control.cancel(result.id, app=app)
        await_condition(lambda: not is_locked(locked), "the lock's release")
    assert result.state == "REVOKED"
