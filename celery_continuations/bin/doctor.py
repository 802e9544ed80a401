"""Check a configuration against the promises, and say what to change."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from celery.backends.base import DisabledBackend
from celery.exceptions import ImproperlyConfigured

from celery_continuations import celery_internals, conf
from celery_continuations.bin import callback_checks
from celery_continuations.bin.facts import brief
from celery_continuations.bin.shown import plain
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.exceptions import StoreError
from celery_continuations.stores import TERMINAL, Record, Store, open_store
from celery_continuations.stores.factory import stores_of, without_store
from celery_continuations.stores.memory import MemoryStore
from celery_continuations.stores.problems import UnusableStoreError, lasting_cause
from celery_continuations.task import AppTask, ContinuableTask

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["HINT", "OK", "PROBLEM", "Finding", "examine", "lines"]

PROBLEM, HINT, OK = "problem", "hint", "ok"

_COLOURS = {PROBLEM: "red", HINT: "yellow", OK: "green"}


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        level: ``"problem"``, ``"hint"`` or ``"ok"``.
        name: what was checked.
        text: the finding, and what to do.
        promise: the number, in docs/promises.md, of the promise that it concerns, or None.
    """

    level: str
    name: str
    text: str
    promise: int | None = None


def examine(app: Celery) -> list[Finding]:
    """Make all checks; one that fails does not stop the others."""
    try:
        app.loader.import_default_modules()
        conf.validate(app)
        app.finalize()
        stores = [store for store in stores_of(app) if store.keeps]
    except (ImproperlyConfigured, StoreError) as exc:
        return [Finding(PROBLEM, "settings", str(exc))]
    found = [*_store(app), *_tasks(app), *_backend(app), *_broker(app), *_runtime(app), *_worker(app), *_callbacks(app)]
    for store in stores:
        found += [*_keys(store), *_reach(store)]
    if not any(one.name == "reach" and one.level == PROBLEM for one in found):
        found += [*_redis(app, stores), *_records(app, stores)]
    return found


def lines(found: list[dict[str, Any]], width: int | None) -> Iterator[str]:
    """Yield the findings as text."""
    for one in found:
        promise = f" (promise {one['promise']})" if one["promise"] else ""
        body = textwrap.wrap(plain(" ".join(f"{one['text']}{promise}".split())), (width or 80) - 10)
        yield click.style(f"{one['level']:<8}", fg=_COLOURS[one["level"]]) + f"  {click.style(one['name'], bold=True)}"
        yield from (" " * 10 + line for line in body)
    count = sum(one["level"] == PROBLEM for one in found)
    yield f"{count} problem{'' if count == 1 else 's'}"


def _store(app: Celery) -> Iterator[Finding]:
    setting = conf.app_setting(app, "store")
    store = open_store(app, setting)
    if isinstance(store, MemoryStore):
        yield Finding(
            PROBLEM,
            "store",
            "continuation_store is 'memory', which other processes cannot see: it is for tests. "
            "Set it to a redis://, db+postgresql://, db+sqlite:/// or file:// URL.",
            1,
        )
    elif store.keeps:
        yield Finding(OK, "store", f"{type(store).__name__.removesuffix('Store')} keeps the records.")
    elif setting == "auto":
        yield Finding(PROBLEM, "store", without_store(app) or "", 1)
    else:
        yield Finding(
            HINT,
            "store",
            "continuation_store is 'message': a killed worker's tasks start over, and two deliveries of one "
            "task run side by side. A redis://, db+postgresql://, db+sqlite:/// or file:// URL prevents both.",
            1,
        )
    said = "is" if conf.app_setting(app, "namespace") else "is made of app name and broker:"
    yield Finding(OK, "namespace", f"continuation_namespace {said} {conf.namespace(app)}")


def _keys(store: Store) -> Iterator[Finding]:
    prefixes = getattr(store, "prefixes", ())
    if prefixes:
        yield Finding(
            OK, "keys", f"Keys in Redis, as an ACL must allow them: {' '.join(f'~{one}*' for one in prefixes)}"
        )


def _reach(store: Store) -> Iterator[Finding]:
    try:
        store.check()
        began = time.perf_counter()
        problems = store.scan().problems
    except StoreError as exc:
        cause = exc.problem if isinstance(exc, UnusableStoreError) else lasting_cause(exc)
        text = f"The store cannot be reached: {exc}" if cause is None else f"The store can never work: {cause}"
        yield Finding(PROBLEM, "reach", text, 8)
    else:
        for problem in problems:
            yield Finding(PROBLEM, "entries", f"The store has an entry that cannot be read: {problem}.", 8)
        took = 1000 * (time.perf_counter() - began)
        yield Finding(OK, "reach", f"{type(store).__name__} answered in {took:.1f} ms.")


def _tasks(app: Celery) -> Iterator[Finding]:
    ours = [task for task in app.tasks.values() if isinstance(task, AppTask) and not task.name.startswith("celery.")]
    if not ours:
        yield Finding(HINT, "tasks", "The app has no continuable task: are the modules with its tasks imported?")
    for attribute, promise, what in (
        ("acks_late", 1, "a process that dies before the task is claimed loses it"),
        ("reject_on_worker_lost", 1, "a pool process that dies before the task is claimed loses it"),
    ):
        wrong = [task for task in ours if not getattr(task, attribute)]
        for level, names in (
            (PROBLEM, [task.name for task in wrong if isinstance(task, ContinuableTask)]),
            (HINT, [task.name for task in wrong if not isinstance(task, ContinuableTask)]),
        ):
            if names:
                has = f"{_some(names)}: {attribute} is not True, so {what}. Set {attribute}=True"
                yield Finding(level, attribute, has + ("." if level == PROBLEM else " if it has steps."), promise)


def _some(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _backend(app: Celery) -> Iterator[Finding]:
    if celery_internals.keeps_results(app.backend):
        yield Finding(OK, "result backend", f"{type(app.backend).__name__} keeps the state of a task.")
        return
    because = (
        "so a task whose end could not be written to the store runs again from its last save. Set result_backend to a "
        "database, Redis or file:// URL."
    )
    if isinstance(app.backend, DisabledBackend):
        yield Finding(HINT, "result backend", f"None is configured, {because}", 2)
    else:
        yield Finding(PROBLEM, "result backend", f"rpc:// sends a result to one caller and to no worker, {because}", 2)


def _broker(app: Celery) -> Iterator[Finding]:
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
    except Exception as exc:  # of any driver
        yield Finding(PROBLEM, "broker", f"The broker cannot be reached: {type(exc).__name__}: {exc}", 1)
    else:
        yield Finding(OK, "broker", f"{conf.driver_type(app)} was reached.")


def _runtime(app: Celery) -> Iterator[Finding]:
    driver = conf.driver_type(app)
    ours = {task.name: task for task in app.tasks.values() if isinstance(task, AppTask)}
    runtimes = {name: conf.seconds(conf.setting(task, "max_runtime")) for name, task in ours.items()}
    runtimes["the app"] = conf.seconds(conf.app_setting(app, "max_runtime"))
    limit = None
    if driver == "amqp":
        limit, setting = conf.CONSUMER_TIMEOUT, "RabbitMQ's consumer_timeout, if your server has its default"
    elif not open_store(app, conf.app_setting(app, "store")).keeps:
        limit = conf.transport_options(app).get("visibility_timeout", conf.VISIBILITY_TIMEOUT.get(driver))
        setting = "visibility_timeout, after which a second delivery runs beside the first"
    if limit is None:
        return
    wrong = [name for name, value in runtimes.items() if value != "auto" and (value is None or value >= limit)]
    if wrong:
        level, promise = (HINT, 1) if driver == "amqp" else (PROBLEM, 3)
        text = f"continuation_max_runtime of {_some(wrong)} is not below {limit:,} s: {setting}. Set it to 'auto'."
        yield Finding(level, "max_runtime", text, promise)


def _worker(app: Celery) -> Iterator[Finding]:
    if not conf.app_setting(app, "sweep_interval"):
        yield Finding(
            PROBLEM,
            "sweep_interval",
            "continuation_sweep_interval is 0, so no worker with these settings recovers the tasks of dead workers. "
            "Set it above 0 for at least one worker.",
            1,
        )
    if not conf.celery_setting(app, "worker_soft_shutdown_timeout"):
        yield Finding(
            HINT,
            "soft shutdown",
            "worker_soft_shutdown_timeout is 0: a cold stop (SIGQUIT) gives the current item one second, then cuts "
            "and repeats it. Set it to more than the longest time between two checkpoints.",
            4,
        )
    prefetch = conf.celery_setting(app, "worker_prefetch_multiplier")
    if prefetch != 1:
        yield Finding(
            HINT,
            "prefetch",
            f"worker_prefetch_multiplier is {prefetch}: messages that a killed worker had only fetched wait for "
            "the broker to return them. Set it to 1.",
            1,
        )
    if os.environ.get("INVOCATION_ID"):
        yield Finding(
            HINT,
            "systemd",
            "This runs under systemd. KillMode, which cannot be read from here, must be mixed or control-group, and "
            "TimeoutStopSec longer than the longest time between two checkpoints.",
            4,
        )


def _callbacks(app: Celery) -> Iterator[Finding]:
    if callback_checks.are_used(app):
        problems = list(callback_checks.problems(app))
        yield from (Finding(PROBLEM, "callbacks", text) for text in problems)
        if not problems:
            yield Finding(
                OK, "callbacks", "The secret cannot be guessed, and addresses are served over TLS or locally."
            )


# -- the servers


def _redis(app: Celery, stores: list[Store]) -> Iterator[Finding]:
    clients = [("store", store.client) for store in stores if hasattr(store, "client")]
    try:
        with app.connection_for_write() as connection:
            if conf.driver_type(app) == "redis":
                channel: Any = connection.default_channel
                clients.append(("broker", channel.client))
            seen: set[str] = set()
            for what, client in clients:
                yield from _redis_server(what, client, seen)
    except Exception as exc:  # of any driver
        yield Finding(HINT, "redis", f"Eviction and persistence could not be checked: {type(exc).__name__}: {exc}", 1)


def _redis_server(what: str, client: Any, seen: set[str]) -> Iterator[Finding]:
    name = f"redis of the {what}"
    try:
        run = _text(client.info("server")).get("run_id", "")
        if run and run in seen:
            return
        seen.add(run)
        found = {key: value for part in _ASKED for key, value in _text(client.config_get(part)).items()}
    except Exception as exc:  # of redis-py, which is imported only where it is used
        text = f"The server hides its settings ({exc}). Check that maxmemory-policy is noeviction, and persistence on."
        yield Finding(HINT, name, text, 1)
        return
    policy = found.get("maxmemory-policy")
    if policy != "noeviction":
        level = PROBLEM if found.get("maxmemory") not in ("0", None) else HINT
        limit = "" if level == PROBLEM else ", though without maxmemory it never evicts"
        text = f"maxmemory-policy is {policy}: Redis may evict records{limit}. Set it to noeviction."
        yield Finding(level, f"{name}: eviction", text, 1)
    if not found.get("save") and found.get("appendonly") != "yes":
        text = "Persistence is off: all records are lost when the server stops. Set appendonly to yes."
        yield Finding(PROBLEM, f"{name}: persistence", text, 1)
    elif policy == "noeviction":
        yield Finding(OK, name, "It evicts nothing, and persists its data.")


_ASKED = ("maxmemory", "maxmemory-policy", "save", "appendonly")


def _text(answer: dict[Any, Any]) -> dict[str, str]:
    """Return an answer of Redis as text, whether its client decodes or not."""

    def text(value: Any) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    return {text(key): text(value) for key, value in answer.items()}


# -- the records


def _records(app: Celery, stores: list[Store]) -> Iterator[Finding]:
    unreadable, snapshots, count = [], [], 0
    try:
        for store in stores:
            for task_id, record in store.records():
                count += 1
                if not isinstance(record, Record) or brief(task_id, record)["error"]:
                    unreadable.append(task_id)
                elif record.snapshot and record.fence.status not in TERMINAL:
                    snapshots.append(Snapshot.loads(record.snapshot))
    except StoreError as exc:
        yield Finding(PROBLEM, "records", f"The records cannot be read: {exc}", 8)
        return
    if unreadable:
        text = f"{len(unreadable)} of {count} cannot be read or recovered: {_some(unreadable)}. `list` shows why."
        yield Finding(PROBLEM, "records", text, 1)
    elif stores:
        yield Finding(OK, "records", f"{count} records, all can be read.")
    for check in _OF_SNAPSHOTS:
        yield from check(app, snapshots)


def _waits(app: Celery, snapshots: list[Snapshot]) -> Iterator[Finding]:
    expires = conf.seconds(conf.celery_setting(app, "result_expires"))
    ends = [one.waiting.until for one in snapshots if one.waiting]
    longest = max((end - time.time() for end in ends if isinstance(end, float)), default=0.0)
    if expires and longest > expires:
        text = f"result_expires is {expires:,.0f} s, but a task waits for {longest:,.0f} s more: results and the state "
        yield Finding(HINT, "result_expires", text + "RETRY of waiting tasks expire before. Increase it.", 6)


def _gaps(app: Celery, snapshots: list[Snapshot]) -> Iterator[Finding]:
    gap = max((float(one.gap) for one in snapshots if isinstance(one.gap, (int, float))), default=0.0)
    if not gap:
        return
    grace = conf.seconds(conf.app_setting(app, "grace_period"))
    if grace is not None and grace < gap:
        text = f"continuation_grace_period is {grace:g} s, but {gap:.1f} s passed between two checkpoints: a stop may "
        yield Finding(PROBLEM, "grace period", text + "end in a kill. Increase it, or make more checkpoints.", 4)
    else:
        text = f"Up to {gap:.1f} s passed between two checkpoints; give a worker more time than that to stop."
        yield Finding(HINT if grace is None else OK, "grace period", text, 4)


_OF_SNAPSHOTS: tuple[Callable[[Any, list[Snapshot]], Iterator[Finding]], ...] = (_waits, _gaps)
