"""``celery -A proj continuations``: look at tasks, and steer them.  No worker is needed for any of it."""

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

from celery_continuations import control
from celery_continuations.bin import doctor as checks
from celery_continuations.bin import facts, shown, watching
from celery_continuations.bin.sweeping import sweep as sweep_once
from celery_continuations.exceptions import ContinuationError

if TYPE_CHECKING:
    from celery import Celery

    from celery_continuations.worker.sweeper import Report

__all__ = ["continuations"]

_OURS = (ContinuationError, OperationalError, ImproperlyConfigured)

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
_ids = click.argument("task_ids", metavar="ID...", nargs=-1, required=True)


@click.group()
def continuations() -> None:
    """Look at continuable tasks, and steer them."""


def _command(function: Callable[..., None]) -> Any:
    """Make a command of the group that tells our own errors on one line."""

    @wraps(function)
    def run(ctx: click.Context, **options: Any) -> None:
        # click leaves colours out where the output is not a terminal
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


# -- looking


@_command
@click.option("--state", "states", multiple=True, type=click.Choice(facts.STATES), help="Only these; repeatable.")
@click.option("--task", "pattern", metavar="GLOB", help="Only tasks of such a name, e.g. 'proj.*'.")
@click.option("--older", type=shown.Duration(), help="Only those that began longer ago: 90s, 5m, 2h, 3d.")
@click.option("--younger", type=shown.Duration(), help="Only those that began since then.")
@click.option("--version", type=int, help="Only tasks that were begun by this continuation_version.")
@click.option("--all", "everything", is_flag=True, help="Also those that are done or cancelled.")
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
            return True  # only that it needs attention is known
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
    """Show everything that is known of tasks."""

    def look(task_id: str) -> dict[str, Any]:
        _, record = facts.find(ctx.obj.app, task_id)
        if record is None:
            return {**facts.nothing(task_id, None), "error": "there is no record of it"}
        return facts.whole(task_id, record)

    found = _each(task_ids, look)
    for one in found:
        if one["error"] and not as_json:
            _complain(f"{one['id']}: {one['error']}")
    _print(found, (line for one in found if not one["error"] for line in shown.whole(one)), as_json)
    ctx.exit(int(any(one["error"] for one in found)))


@_command
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@click.option("--interval", default=0.5, type=click.FloatRange(0.05), help="Seconds between two looks; 0.5.")
@_as_json
def watch(ctx: click.Context, task_ids: tuple[str, ...], interval: float, as_json: bool) -> None:
    """Watch tasks until they have ended; without ids all that have not ended, until Ctrl-C."""
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
    """Do it for each; one that fails does not stop the others."""
    found = []
    for task_id in dict.fromkeys(task_ids):
        try:
            found.append(act(task_id))
        except OperationalError as exc:
            problem = f"it is kept, but the broker cannot be reached, and a worker has to publish it: {exc}"
            found.append({**facts.nothing(task_id, None), "error": problem})
        except ContinuationError as exc:
            found.append({**facts.nothing(task_id, None), "error": str(exc)})
    return found


def _steer(ctx: click.Context, task_ids: Iterable[str], as_json: bool, act: Callable[..., None], *args: Any) -> None:
    app: Celery = ctx.obj.app

    def one(task_id: str) -> dict[str, Any]:
        setting, _ = facts.find(app, task_id)
        act(task_id, *args, app=app, store=setting)
        _, record = facts.find(app, task_id)
        return facts.brief(task_id, record) if record else facts.nothing(task_id, None)

    found = _each(task_ids, one)
    for each in found:
        if each["error"] and not as_json:
            _complain(f"{each['id']}: {each['error']}")
    _print(found, (_outcome(each) for each in found if not each["error"]), as_json)
    ctx.exit(int(any(each["error"] for each in found)))


def _outcome(one: dict[str, Any]) -> str:
    state = one["state"] or "not begun"
    text = f"is to {one['wish']} at its next checkpoint" if one["wish"] else state
    return f"{shown.plain(one['id'])}: {click.style(text, fg=shown.COLOURS.get(state))}"


@_command
@_ids
@_as_json
def pause(ctx: click.Context, task_ids: tuple[str, ...], as_json: bool) -> None:
    """Have tasks leave their workers at the next checkpoint, and stay away."""
    _steer(ctx, task_ids, as_json, control.pause)


@_command
@_ids
@_as_json
def resume(ctx: click.Context, task_ids: tuple[str, ...], as_json: bool) -> None:
    """Let paused tasks go on."""
    _steer(ctx, task_ids, as_json, control.resume)


@_command
@_ids
@click.option("--yes", is_flag=True, help="Do not ask.")
@_as_json
def cancel(ctx: click.Context, task_ids: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """End tasks in the state REVOKED: at the next checkpoint, or immediately if they are not running."""
    if not yes and sys.stdin.isatty():
        what = "this task" if len(task_ids) == 1 else f"these {len(task_ids)} tasks"
        click.confirm(f"Cancel {what}? Their progress is dropped", abort=True, err=True)
    _steer(ctx, task_ids, as_json, control.cancel)


@_command
@_ids
@click.option("--step", help="Begin this step again, and all after it, instead of going on where it failed.")
@click.option("--accept-source", is_flag=True, help="Go on in a loop's source as it is now, though it has changed.")
@_as_json
def retry(ctx: click.Context, task_ids: tuple[str, ...], step: str | None, accept_source: bool, as_json: bool) -> None:
    """Take up failed tasks."""
    if step is not None and accept_source:
        raise click.UsageError("--step begins a loop again, which accepts its source anyway: give one of the two")

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
        raise click.BadParameter(f"this is no JSON: {exc}", param_hint="PAYLOAD") from exc
    _steer(ctx, [task_id], as_json, lambda one, **options: control.deliver(one, name, value, **options))


# -- the whole


def _swept(report: Report) -> dict[str, Any]:
    task_id, action, _ = report
    return {"id": task_id, "action": action, "text": str(report)}


@_command
@click.option("--wait", is_flag=True, help="Watch for a whole lease first, and judge workers elsewhere by theirs.")
@_as_json
def sweep(ctx: click.Context, wait: bool, as_json: bool) -> None:
    """Recover once what dead workers have left, as a worker would."""
    try:
        found = sweep_once(ctx.obj.app, wait=wait)
    except OSError as exc:
        raise OperationalError(str(exc)) from exc
    _print([_swept(one) for one in found], [shown.plain(str(one)) for one in found] or ["nothing to recover"], as_json)
    ctx.exit(int(any(one.action == "recovery_failed" for one in found)))


@_command
@_as_json
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check the configuration against what is promised, and say what to change."""
    found = [one._asdict() for one in checks.examine(ctx.obj.app)]
    _print(found, checks.lines(found, shown.width()), as_json)
    ctx.exit(int(any(one["level"] == checks.PROBLEM for one in found)))
