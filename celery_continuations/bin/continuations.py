"""``celery -A proj continuations``: inspect and steer tasks.  It needs no worker."""

from __future__ import annotations

import fnmatch
import json
import sys
import time
from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options
from celery.exceptions import ImproperlyConfigured
from kombu.exceptions import OperationalError

from celery_continuations import conf, control
from celery_continuations.bin import doctor as checks
from celery_continuations.bin import facts, shown, watching
from celery_continuations.bin.sweeping import sweep as sweep_once
from celery_continuations.exceptions import ContinuationError, DeliveryError
from celery_continuations.selecting import UNFINISHED, select

if TYPE_CHECKING:
    from celery import Celery

    from celery_continuations.worker.sweeper import Report

__all__ = ["continuations"]

_OURS = (ContinuationError, OperationalError, ImproperlyConfigured)

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
_ids = click.argument("task_ids", metavar="ID...", nargs=-1, required=True)


@click.group()
def continuations() -> None:
    """Inspect and steer continuable tasks."""


def _command(function: Callable[..., None]) -> Any:
    """Make a command of the group that prints our own errors on one line."""

    @wraps(function)
    def run(ctx: click.Context, **options: Any) -> None:
        # click omits colours if the output is not a terminal
        ctx.color = False if ctx.obj.no_color else None
        try:
            function(ctx, **options)
        except _OURS as exc:
            _complain(str(exc))
            ctx.exit(1)

    name = function.__name__.removesuffix("_")
    return continuations.command(name, cls=CeleryCommand)(click.pass_context(handle_preload_options(run)))


def _complain(text: str) -> None:
    click.secho(shown.plain(text), fg="red", err=True)


def _print(found: list[dict[str, Any]], lines: Iterable[str], as_json: bool) -> None:
    for line in [shown.as_json(found)] if as_json else lines:
        click.echo(line)


# -- inspecting


@_command
@click.option(
    "--state", "states", multiple=True, type=click.Choice(facts.STATES), help="Only tasks in this state; repeatable."
)
@click.option("--task", "pattern", metavar="GLOB", help="Only tasks with a matching name, e.g. 'proj.*'.")
@click.option("--older", type=shown.Duration(), help="Only tasks that began longer ago: 90s, 5m, 2h, 3d.")
@click.option("--younger", type=shown.Duration(), help="Only tasks that began since then.")
@click.option("--version", type=int, help="Only tasks that were begun by this continuation_version.")
@click.option("--all", "everything", is_flag=True, help="Include tasks that are done or cancelled.")
@_as_json
def list_(
    ctx: click.Context,
    states: tuple[str, ...],
    pattern: str | None,
    older: float | None,
    younger: float | None,
    version: int | None,
    everything: bool,
    as_json: bool,
) -> None:
    """List tasks, the oldest first; by default those that are not done or cancelled."""
    wanted = set(states) or set(facts.STATES) - (set() if everything else {"done", "cancelled"})

    def is_wanted(one: dict[str, Any]) -> bool:
        if one["error"]:
            return True  # its state is not known, and it needs attention
        if one["state"] not in wanted or (pattern and not fnmatch.fnmatchcase(one["task"] or "", pattern)):
            return False
        if version is not None and one["version"] != version:
            return False
        if older is younger is None:
            return True
        age = None if one["began"] is None else time.time() - one["began"]
        return age is not None and (older is None or age > older) and (younger is None or age < younger)

    found = sorted(filter(is_wanted, facts.listed(ctx.obj.app)), key=facts.key)
    _print(found, shown.table(found) if found else ["no such tasks"], as_json)
    ctx.exit(int(any(one["error"] for one in found)))


@_command
@_ids
@_as_json
def show(ctx: click.Context, task_ids: tuple[str, ...], as_json: bool) -> None:
    """Show everything that is known about tasks."""

    def look(task_id: str) -> dict[str, Any]:
        _, record = facts.find(ctx.obj.app, task_id)
        if record is None:
            return {**facts.nothing(task_id, None), "error": "it has no record"}
        return facts.whole(task_id, record)

    found = _each(task_ids, look)
    for one in found:
        if one["error"] and not as_json:
            _complain(f"{one['id']}: {one['error']}")
    _print(found, (line for one in found if not one["error"] for line in shown.whole(one)), as_json)
    ctx.exit(int(any(one["error"] for one in found)))


@_command
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@click.option("--interval", default=0.5, type=click.FloatRange(0.05), help="Seconds between two reads; 0.5.")
@_as_json
def watch(ctx: click.Context, task_ids: tuple[str, ...], interval: float, as_json: bool) -> None:
    """Watch tasks until they have ended; without ids watch all unfinished tasks, until Ctrl-C."""
    seen = watching.looks(ctx.obj.app, task_ids, interval)
    try:
        if as_json or not sys.stdout.isatty():
            watching.lines(seen, click.echo, as_json=as_json)
        elif watching.has_rich():
            watching.bars(seen, no_color=ctx.obj.no_color)
        else:
            raise watching.missing_rich()
    except KeyboardInterrupt:
        click.echo(err=True)


# -- steering


def _each(task_ids: Iterable[str], act: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Call ``act`` for each task; an error does not stop the others."""
    found = []
    for task_id in dict.fromkeys(task_ids):
        try:
            found.append(act(task_id))
        except OperationalError as exc:
            problem = f"it is saved, but the broker cannot be reached; a worker will publish it: {exc}"
            found.append({**facts.nothing(task_id, None), "error": problem})
        except ContinuationError as exc:
            found.append({**facts.nothing(task_id, None), "error": str(exc)})
    return found


def _steer(
    ctx: click.Context, task_ids: Iterable[str], as_json: bool, act: Callable[..., None], done: str = ""
) -> None:
    """Call ``act`` for each task, print the outcomes, and how many tasks were ``done``."""
    app: Celery = ctx.obj.app

    def one(task_id: str) -> dict[str, Any]:
        setting, _ = facts.find(app, task_id)
        act(task_id, app=app, store=setting)
        _, record = facts.find(app, task_id)
        return facts.brief(task_id, record) if record else facts.nothing(task_id, None)

    found = _each(task_ids, one)
    for each in found:
        if each["error"] and not as_json:
            _complain(f"{each['id']}: {each['error']}")
    _print(found, (_outcome(each) for each in found if not each["error"]), as_json)
    if done and not as_json:
        count = sum(not each["error"] for each in found)
        click.echo(f"{count} task{'' if count == 1 else 's'} {done}")
    ctx.exit(int(any(each["error"] for each in found)))


def _outcome(one: dict[str, Any]) -> str:
    state = one["state"] or "not begun"
    text = f"will {one['wish']} at its next checkpoint" if one["wish"] else state
    return f"{shown.plain(one['id'])}: {click.style(text, fg=shown.COLOURS.get(state))}"


@_command
@_ids
@_as_json
def pause(ctx: click.Context, task_ids: tuple[str, ...], as_json: bool) -> None:
    """Pause tasks at their next checkpoint."""
    _steer(ctx, task_ids, as_json, control.pause)


@_command
@_ids
@_as_json
def resume(ctx: click.Context, task_ids: tuple[str, ...], as_json: bool) -> None:
    """Resume paused tasks."""
    _steer(ctx, task_ids, as_json, control.resume)


@_command
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All tasks that have begun and not ended.")
@click.option("--task", "pattern", metavar="GLOB", help="All tasks with a matching name, e.g. 'proj.*'.")
@click.option(
    "--state",
    "--status",
    "states",
    multiple=True,
    type=click.Choice([status.value for status in UNFINISHED]),
    help="All tasks in this state; repeatable.",
)
@click.option(
    "--older", "--older-than", type=shown.Duration(), help="All tasks that began longer ago: 90s, 5m, 2h, 3d."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_as_json
def cancel(
    ctx: click.Context,
    task_ids: tuple[str, ...],
    everything: bool,
    pattern: str | None,
    states: tuple[str, ...],
    older: float | None,
    yes: bool,
    as_json: bool,
) -> None:
    """End tasks in the state REVOKED: at the next checkpoint, or immediately if they are not running.

    Give ids; or --all, or options that all must match.
    """
    filtered = everything or bool(states) or pattern is not None or older is not None
    if filtered == bool(task_ids):
        raise click.UsageError("give ids, or --all or other options that choose tasks, and not both")
    if filtered and not yes and not sys.stdin.isatty():
        raise click.UsageError("tasks that are chosen by options are cancelled only with --yes, or on a terminal")
    if filtered:
        ctx.obj.app.loader.import_default_modules()
        found = select(ctx.obj.app, task=pattern, status=states or UNFINISHED, older_than=older)
        task_ids = tuple(one.task_id for one in found)
    if task_ids and not yes and sys.stdin.isatty():
        what = "this task" if len(task_ids) == 1 else f"these {len(task_ids)} tasks"
        click.confirm(f"Cancel {what}? Their progress is dropped", abort=True, err=True)
    if filtered:
        _steer(ctx, task_ids, as_json, control.cancel, "cancelled, those that run at their next checkpoint")
    _steer(ctx, task_ids, as_json, _cancel)


def _cancel(task_id: str, *, app: Celery, store: str) -> None:
    is_known = facts.is_known(app, task_id)
    control.cancel(task_id, app=app, store=store)
    if not is_known:
        kept = shown.duration(conf.seconds(conf.app_setting(app, "keep_failed")))
        raise DeliveryError(
            task_id,
            "no such task has begun: its id may be mistyped, or its message still in a queue. "
            f"A task with this id will not run within the next {kept}",
        )


@_command
@_ids
@click.option("--step", help="Begin this step and all later ones again, instead of resuming where the task failed.")
@click.option(
    "--accept-source", is_flag=True, help="Continue in the loop's source as it is now, although it has changed."
)
@_as_json
def retry(ctx: click.Context, task_ids: tuple[str, ...], step: str | None, accept_source: bool, as_json: bool) -> None:
    """Retry failed tasks."""
    if step is not None and accept_source:
        raise click.UsageError(
            "--step starts a loop from its beginning, which accepts its source anyway: use one of the two"
        )

    def retry_one(task_id: str, **options: Any) -> None:
        control.retry(task_id, step, accept_source=accept_source, **options)

    _steer(ctx, task_ids, as_json, retry_one)


@_command
@click.argument("task_id", metavar="ID")
@click.argument("name")
@click.argument("payload")
@_as_json
def deliver(ctx: click.Context, task_id: str, name: str, payload: str, as_json: bool) -> None:
    """Deliver PAYLOAD, which is JSON, to a task's wait NAME; - reads it from the standard input."""
    try:
        value = json.loads(sys.stdin.read() if payload == "-" else payload)
    except ValueError as exc:
        raise click.BadParameter(f"this is not JSON: {exc}", param_hint="PAYLOAD") from exc
    except RecursionError as exc:
        raise click.BadParameter("it is nested too deeply", param_hint="PAYLOAD") from exc
    _steer(ctx, [task_id], as_json, lambda one, **options: control.deliver(one, name, value, **options))


# -- all tasks


def _swept(report: Report) -> dict[str, Any]:
    task_id, action, _ = report
    return {"id": task_id, "action": action, "text": str(report)}


@_command
@click.option(
    "--wait",
    is_flag=True,
    help="Watch the store for a full lease first, and then judge workers on other machines by their leases.",
)
@_as_json
def sweep(ctx: click.Context, wait: bool, as_json: bool) -> None:
    """Recover the tasks of dead workers once, as a worker would."""
    try:
        found = sweep_once(ctx.obj.app, wait=wait)
    except OSError as exc:
        raise OperationalError(str(exc)) from exc
    _print([_swept(one) for one in found], [shown.plain(str(one)) for one in found] or ["nothing to recover"], as_json)
    ctx.exit(int(any(one.action == "recovery_failed" for one in found)))


@_command
@_as_json
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check the configuration against the promises, and say what to change."""
    found = [one._asdict() for one in checks.examine(ctx.obj.app)]
    _print(found, checks.lines(found, shown.width()), as_json)
    ctx.exit(int(any(one["level"] == checks.PROBLEM for one in found)))
