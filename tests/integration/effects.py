"""A task whose items must each take effect exactly once, and a parent that repeatedly kills its process.

Run it as a program, because it forks: ``python -m tests.integration.effects`` with the options of :func:`main` as JSON.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
from typing import Any

import sqlalchemy as sa
from celery import Celery
from celery.app.trace import build_tracer
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from celery_continuations import ContinuableTask
from celery_continuations.messages.headers import GENERATION
from celery_continuations.protocol.liveness import Loss
from celery_continuations.protocol.recovery import recover
from celery_continuations.stores import Status, open_store

TASK_ID = "the-task"

metadata = sa.MetaData()
# The table accepts an item that takes effect twice, or only in part.
effects = sa.Table(
    "effect",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("item", sa.Integer),
    sa.Column("part", sa.Integer),
)


class BySession:
    def __init__(self, url: str) -> None:
        self.transaction: Any = Session(sa.create_engine(url, poolclass=NullPool))

    def add(self, item: int) -> None:
        for part in (1, 2):
            self.transaction.execute(sa.insert(effects).values(item=item, part=part))


class ByDjango:
    transaction = "default"

    def __init__(self, url: str) -> None:
        from django.conf import settings

        parts = sa.make_url(url)
        kind = "sqlite3" if parts.drivername.startswith("sqlite") else "postgresql"
        database = {
            "ENGINE": f"django.db.backends.{kind}",
            "NAME": parts.database,
            "USER": parts.username or "",
            "HOST": parts.host or "",
            "PORT": str(parts.port or ""),
        }
        if not settings.configured:
            settings.configure(DATABASES={"default": database}, INSTALLED_APPS=["celery_continuations.contrib.django"])

    def add(self, item: int) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            for part in (1, 2):
                cursor.execute("INSERT INTO effect (item, part) VALUES (%s, %s)", [item, part])


class ByDjangoAndItsStore(ByDjango):
    def __init__(self, url: str) -> None:
        import django
        from django.core.management import call_command
        from django.db import connection

        super().__init__(url)
        django.setup()
        call_command("migrate", verbosity=0)
        connection.close()


WAYS = {"session": BySession, "django": ByDjango, "django's store": ByDjangoAndItsStore}


def make_task(app: Celery, way: Any, count: int) -> Any:
    @app.task(base=ContinuableTask, bind=True, name="effects")
    def run(self: Any) -> None:
        for item in self.iterate("rows", range(count), batch=2, transaction=way.transaction):
            for one in item:
                way.add(one)
            began(self)
        for step in self.step("moves", start=count, transaction=way.transaction):
            while step.cursor < 2 * count:
                way.add(step.cursor)
                began(self)
                step.advance()
            way.add(2 * count)

    return run


def began(task: Any) -> None:
    """Signal the parent, once, that the task runs and may be killed."""
    pipe, task.pipe = getattr(task, "pipe", None), None
    if pipe is not None:
        os.write(pipe, b"!")


def execute(app: Celery, task: Any, generation: int) -> None:
    request = {"id": TASK_ID, "task": task.name, GENERATION: generation, "delivery_info": {}, "hostname": "killed@test"}
    build_tracer(task.name, task, app=app)(TASK_ID, (), {}, request)


def main(url: str, way: str, count: int, kills: int, seed: int) -> dict[str, int]:
    """Run the task in one process after another, killing `kills` of them in the middle of an item."""
    randomness = random.Random(seed)
    engine = sa.create_engine(url, poolclass=NullPool)
    metadata.create_all(engine)
    app = Celery("effects", broker="memory://", set_as_current=False)
    app.conf.update(
        continuation_store="django" if WAYS[way] is ByDjangoAndItsStore else f"db+{url}",
        continuation_namespace=f"{way} {seed}",
        continuation_max_crashes=10**6,
        database_engine_options={"poolclass": NullPool} if "sqlite" in url else {},
    )
    app.finalize()
    used = WAYS[way](url)
    killed = executions = generation = 0
    done = False
    while not done:
        executions += 1
        end, begin = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(end)
            task = make_task(app, used, count)
            task.pipe = begin
            try:
                execute(app, task, generation)
            finally:
                os._exit(0)
        os.close(begin)
        os.read(end, 1)
        if killed < kills:
            # until it is killed at any moment, or has ended before
            select.select([end], [], [], randomness.uniform(0, 0.03))
            os.kill(pid, signal.SIGKILL)
        os.close(end)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
        store = open_store(app, app.conf.continuation_store)
        record = store.read(TASK_ID)
        assert record is not None
        done = record.fence.status in (Status.DONE, Status.FAILED)
        assert record.fence.status != Status.FAILED, record
        if not done:
            left = recover(store, TASK_ID, ended=lambda record: None, loss_of=lambda owner: Loss.SUSPECTED_CRASH)
            assert left is not None, store.read(TASK_ID)
            generation = left.fence.generation
        store.close()
    return {"killed": killed, "executions": executions}


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
