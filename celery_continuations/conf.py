"""The settings: names, defaults, allowed values.  The only reader of ``app.conf``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from celery.exceptions import ImproperlyConfigured
from celery.utils.imports import import_from_cwd

from celery_continuations import celery_internals
from celery_continuations.masking import NOT_SHOWN, masked_setting

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = ["SETTINGS", "namespace", "setting", "tombstone_seconds", "validate"]

PREFIX = "continuation_"

celery_internals.mask_in_reports(masked_setting)


# The same broker, spelled differently by a worker and a caller.
_LOOPBACK = (None, "127.0.0.1", "::1")


class Setting(NamedTuple):
    """One setting: its default, a test for its values, and the allowed values in words."""

    default: Any
    accepts: Callable[[Any], bool]
    allowed: str


def _number(least: float, *, above: bool = False) -> Callable[[Any], bool]:
    def accepts(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return value > least if above else value >= least

    return accepts


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _seconds(value: Any) -> bool:
    if isinstance(value, timedelta):
        return value > timedelta()
    return _number(0, above=True)(value)


_DOTTED = re.compile(r"\w+(\.\w+)+")


def is_path(value: str) -> bool:
    """Return whether a text could be the dotted path of a function."""
    return bool(_DOTTED.fullmatch(value))


#: Kinds of URL that name a store; those of a database may name a driver as well, as in db+postgresql+psycopg.
STORE_SCHEMES = ("redis", "rediss", "redis+socket", "sentinel", "file", "db+sqlite", "db+postgresql", "django")


def _is_store(value: Any) -> bool:
    if value in ("auto", "message", "memory", "django"):
        return True
    if not isinstance(value, str):
        return False
    scheme, separator, _ = value.partition("://")
    return (scheme in STORE_SCHEMES or is_database(scheme)) if separator else is_path(value)


def is_database(scheme: str) -> bool:
    """Return whether a URL with this scheme names a database that a store can be in."""
    return "+".join(scheme.split("+")[:2]) in ("db+sqlite", "db+postgresql")


_BASE_URL = re.compile(r"https?://[^\s?#]+")

#: Characters. An attacker who guesses a secret can deliver to every task.
SHORTEST_SECRET = 32


def _is_secret(value: Any) -> bool:
    return isinstance(value, str) and len(value) >= SHORTEST_SECRET


def _are_renamings(value: Mapping[Any, Any]) -> bool:
    new = [name for name in value.values() if name is not None]
    are_names = all(isinstance(name, str) and name for name in (*value, *new))
    return are_names and len(set(new)) == len(new) and not set(new) & set(value)


_ZERO_OR_MORE = "a number of seconds, 0 or more"

#: RabbitMQ's default, in seconds: a message unacknowledged for longer closes its channel.
CONSUMER_TIMEOUT = 1800

#: kombu's defaults by transport, in seconds: a message unacknowledged for longer is delivered again.
VISIBILITY_TIMEOUT = {"redis": 3600, "sqs": 1800}

#: Every setting by its name without the prefix.
SETTINGS: dict[str, Setting] = {
    "store": Setting(
        "auto",
        _is_store,
        '"auto", "message", "memory", "django", a URL: '
        + ", ".join(f"{s}://…" for s in STORE_SCHEMES)
        + ", or the dotted path of a function of app and namespace that returns a store (package.module.function)",
    ),
    "namespace": Setting(None, lambda v: v is None or (isinstance(v, str) and bool(v)), "a non-empty str or None"),
    "checkpoint_interval": Setting(1.0, _number(0), _ZERO_OR_MORE),
    "max_runtime": Setting(
        "auto",
        lambda v: v is None or v == "auto" or _seconds(v),
        'a number of seconds above 0, a timedelta, None or "auto"',
    ),
    "should_interrupt": Setting(
        None,
        lambda v: v is None or callable(v) or (isinstance(v, str) and is_path(v)),
        "a callable of the task, its dotted path (package.module.function), or None",
    ),
    "max_resumptions": Setting(None, lambda v: v is None or _whole(0)(v), "an int of 0 or more, or None"),
    "resume_options": Setting({}, lambda v: isinstance(v, Mapping), "a dict of apply_async options"),
    "resume_errors_after_advancing": Setting(True, lambda v: isinstance(v, bool), "True or False"),
    "resume_error_countdown": Setting(5, _number(0), _ZERO_OR_MORE),
    "max_snapshot": Setting(256 * 1024, _whole(1), "a number of bytes, 1 or more"),
    "lease": Setting(10, _number(1), "a number of seconds, 1 or more"),
    "sweep_interval": Setting(3, _number(0), _ZERO_OR_MORE),
    "max_crashes": Setting(5, _whole(1), "an int of 1 or more"),
    "change_grace": Setting(600, lambda v: _seconds(v) or v == 0, "a number of seconds, 0 or more, or a timedelta"),
    "on_change": Setting("fail", lambda v: v in ("fail", "restart"), '"fail" or "restart"'),
    "version": Setting(1, _whole(1), "an int of 1 or more"),
    "renamed_steps": Setting(
        {},
        lambda v: isinstance(v, Mapping) and _are_renamings(v),
        "a dict of a task's step names, old to new, or to None for a step that is gone; no new name may be an old one, "
        "or appear twice",
    ),
    "show_cursors": Setting(True, lambda v: isinstance(v, bool), "True or False"),
    "grace_period": Setting(
        None, lambda v: v is None or _number(0, above=True)(v), "a number of seconds above 0, or None"
    ),
    "keep_failed": Setting(timedelta(days=30), _seconds, "a number of seconds above 0, or a timedelta"),
    "callback_url": Setting(
        None,
        lambda v: v is None or (isinstance(v, str) and bool(_BASE_URL.fullmatch(v))),
        "the address of the callback endpoint, http://… or https://…, without ? and #, or None",
    ),
    "callback_secret": Setting(
        None,
        lambda v: v is None or _is_secret(v) or (isinstance(v, (list, tuple)) and bool(v) and all(map(_is_secret, v))),
        f"a secret, a str of {SHORTEST_SECRET} characters or more; a list of them, of which the first signs; or None",
    ),
    "callback_expires": Setting(
        timedelta(days=7), lambda v: _seconds(v) and v != math.inf, "a number of seconds above 0, or a timedelta"
    ),
    "callback_max_body": Setting(64 * 1024, _whole(1), "a number of bytes, 1 or more"),
}

# Settings of the worker, or of the web server that receives callbacks; not of a task.
_OF_THE_APP = (
    "namespace",
    "lease",
    "sweep_interval",
    "grace_period",
    "callback_url",
    "callback_secret",
    "callback_expires",
    "callback_max_body",
)

# Settings of a task alone.
_OF_THE_TASK = ("version", "renamed_steps")

# The options of continuation_resume_options; any other would change the task.
RESUME_OPTIONS = frozenset(("queue", "exchange", "routing_key", "priority", "countdown"))


def setting(task: Task[..., object], name: str) -> Any:
    """Return a setting of ``task``: its own attribute, else the app's, else the default.

    It is read at each call, so that a change takes effect at the next execution.

    Args:
        task: the task.
        name: without the prefix, e.g. ``"max_runtime"``.
    """
    full = PREFIX + name
    if hasattr(task, full):
        for owner in (vars(task), *map(vars, task.__class__.__mro__)):
            if full in owner:
                value = owner[full]  # getattr would make a method of a function
                return value.__func__ if isinstance(value, staticmethod) else value
    return app_setting(task.app, name)


def app_setting(app: Celery, name: str) -> Any:
    """Return a setting of the app, or the default."""
    return app.conf.get(PREFIX + name, SETTINGS[name].default)


def needed(app: Celery, name: str) -> Any:
    """Return a required setting of the app, checked.

    Raises:
        ImproperlyConfigured: when it is not set, or its value is not allowed.
    """
    value = app_setting(app, name)
    if value is None:
        raise ImproperlyConfigured(f"{PREFIX}{name} is not set; it takes {SETTINGS[name].allowed}")
    _check(PREFIX + name, value, SETTINGS[name], "")
    return value


def seconds(value: Any) -> Any:
    """Turn a timedelta into seconds; return anything else unchanged."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def validate(app: Celery, task: Task[..., object] | type[Task[..., object]] | None = None) -> None:
    """Refuse bad settings of the app, or of one task.

    Raises:
        ImproperlyConfigured: with the setting, its value and the allowed values.
    """
    for name, one in SETTINGS.items():
        full = PREFIX + name
        if task is None and name in _OF_THE_TASK:
            continue
        value = app.conf.get(full, one.default) if task is None else getattr(task, full, one.default)
        # a function as class attribute becomes a method, which is still callable
        if value is not one.default:
            _check(full, value, one, "" if task is None else f" of task {task.name}")
    names: Iterable[str] = app.conf
    known, where = {name: one for name, one in SETTINGS.items() if name not in _OF_THE_TASK}, ""
    if task is not None:
        names, known, where = dir(task), _of_tasks(), f" of a task, as {task.name} has it"
    # In Django's settings they are CELERY_CONTINUATION_….
    spaced = f"{app.conf.prefix}{PREFIX}".upper() if app.conf.prefix else PREFIX
    for full in sorted(str(name) for name in names if str(name).startswith((PREFIX, spaced))):
        prefix = PREFIX if full.startswith(PREFIX) else spaced
        if full[len(prefix) :].lower() not in known:
            raise ImproperlyConfigured(
                f"unknown setting {full}{where}; known are: " + ", ".join(sorted(PREFIX + name for name in known))
            )


def refuse_protocol(app: Celery, name: str) -> None:
    """Refuse message protocol 1 for a task with steps: its messages cannot carry what a continuation needs.

    Args:
        app: the app.
        name: the name of the task.

    Raises:
        ImproperlyConfigured: unless the app uses protocol 2, Celery's default.
    """
    if app.conf.task_protocol != 2:
        raise ImproperlyConfigured(
            f"task_protocol = {app.conf.task_protocol!r}: task {name} has steps, which need message protocol 2"
        )


def _of_tasks() -> dict[str, Setting]:
    """Return the settings that a task may have of its own."""
    return {name: one for name, one in SETTINGS.items() if name not in _OF_THE_APP}


def predicate(value: Any) -> Any:
    """Return the callable that a value of ``continuation_should_interrupt`` names.

    Raises:
        ImproperlyConfigured: when it cannot be imported.
    """
    return found_at("should_interrupt", value) if isinstance(value, str) else value


def found_at(name: str, path: str) -> Any:
    """Import the dotted path that is the value of the setting ``name``.

    Raises:
        ImproperlyConfigured: when it cannot be imported.
    """
    module, _, attribute = path.rpartition(".")
    try:
        # As Celery looks for an app: sys.path of the command celery lacks the project's folder.
        return getattr(import_from_cwd(module), attribute)
    except (ImportError, AttributeError) as exc:
        raise ImproperlyConfigured(f"{PREFIX}{name} = {path!r} cannot be imported: {exc}") from exc


def check_arguments(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check settings given without the prefix, and return them with it.

    Raises:
        TypeError: for a name that is not a setting.
        ImproperlyConfigured: for a value that is not allowed.
    """
    for name, value in options.items():
        if name not in _of_tasks():
            raise TypeError(
                f"{where} got {name!r}, which is not a setting of a task; known are: {', '.join(_of_tasks())}"
            )
        _check(name, value, SETTINGS[name], f" of {where}")
    return {PREFIX + name: value for name, value in options.items()}


def _check(full: str, value: Any, one: Setting, where: str) -> None:
    if not one.accepts(value):
        shown = masked_setting(full, value)
        text = NOT_SHOWN if shown is NOT_SHOWN else repr(shown)
        raise ImproperlyConfigured(f"{full} = {text}{where} is not allowed; it takes {one.allowed}")
    if full.endswith("resume_options"):
        for option in value:
            if option not in RESUME_OPTIONS:
                raise ImproperlyConfigured(
                    f"{full}[{option!r}]{where} is not allowed; known are {', '.join(sorted(RESUME_OPTIONS))}"
                )


def namespace(app: Celery) -> str:
    """Return the namespace, which separates services that share a store: the setting, or app name and broker."""
    chosen = app.conf.get(PREFIX + "namespace", None)
    if chosen:
        return str(chosen)
    connection = app.connection_for_write()
    host = "localhost" if connection.hostname in _LOOPBACK else connection.hostname
    where = f"{connection.transport_cls}:{host}:{connection.port}/{connection.virtual_host}"
    return f"{app.main or 'celery'}@{where}"


def celery_setting(app: Celery, name: str) -> Any:
    """Return a setting of Celery's own."""
    return getattr(app.conf, name)  # conf[name] would ignore CELERY_BROKER_URL in the environment


def transport_options(app: Celery) -> dict[str, Any]:
    """Return the broker's transport options."""
    return dict(app.conf.broker_transport_options or {})


def driver_type(app: Celery) -> str:
    """Return the kind of the app's broker, e.g. ``"amqp"`` or ``"redis"``."""
    if app not in _driver_types:
        _driver_types[app] = app.connection_for_write().transport.driver_type
    return _driver_types[app]


# It is needed at each hand-over, and found by making a connection, though without opening it.
_driver_types: WeakKeyDictionary[Celery, str] = WeakKeyDictionary()


def auto_max_runtime(app: Celery, store_keeps: bool) -> float | None:
    """Return what ``continuation_max_runtime = "auto"`` means, in seconds, or None for no limit.

    Args:
        app: the app.
        store_keeps: whether the store can tell a second delivery from the first.
    """
    driver = driver_type(app)
    if driver == "amqp":
        # Prefetched messages wait unacknowledged behind this one, the last of them for that many slices.
        return CONSUMER_TIMEOUT / ((app.conf.worker_prefetch_multiplier or 0) + 2)
    visibility = transport_options(app).get("visibility_timeout", VISIBILITY_TIMEOUT.get(driver))
    return None if store_keeps or visibility is None else visibility / 2


def grace_period(app: Celery) -> float:
    """Return the seconds that a stopping worker may take: the setting, or Celery's own, or 30.

    Kubernetes gives a pod 30.
    """
    return float(app_setting(app, "grace_period") or celery_setting(app, "worker_soft_shutdown_timeout") or 30)


def tombstone_seconds(app: Celery) -> float:
    """Return the seconds that the record of a finished task is kept, so that a late delivery finds it."""
    expires = seconds(app.conf.result_expires) or 0
    visibility = transport_options(app).get("visibility_timeout", VISIBILITY_TIMEOUT["redis"])
    return float(max(expires, 2 * visibility, 86400))
