"""Open the store that ``continuation_store`` names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse
from weakref import WeakKeyDictionary

from celery.app.backends import by_url
from celery.exceptions import ImproperlyConfigured

from celery_continuations import conf
from celery_continuations.exceptions import StoreError
from celery_continuations.masking import masked
from celery_continuations.stores.base import Store
from celery_continuations.stores.memory import MemoryStore
from celery_continuations.stores.message import MessageStore
from celery_continuations.stores.of_broker import OfBroker
from celery_continuations.stores.problems import UnusableStoreError, lasting_cause

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["check_stores", "open_store", "settings_of", "stores_of", "without_store"]

_REDIS = ("redis", "rediss", "redis+socket", "sentinel")
_IN_MEMORY = "other processes cannot see a database in memory"

_opened: WeakKeyDictionary[Celery, dict[str, Store]] = WeakKeyDictionary()

# Stores opened before a fork. They are kept, because collecting them would close connections that the parent still
# uses.
_inherited: list[Any] = []


def _after_fork() -> None:
    global _opened
    _inherited.append(_opened)
    _opened = WeakKeyDictionary()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def open_store(app: Celery, setting: str) -> Store:
    """Return the store that ``setting`` names; the same one each time, for one app.

    Args:
        app: the app, for its namespace, and for the result backend and broker that ``"auto"`` considers.
        setting: a value of ``continuation_store``.

    Raises:
        ImproperlyConfigured: for a URL of an unknown kind, a database in memory, or a path that does not lead to a
            store.
        StoreError: when the store's driver is missing.
    """
    stores = _opened.setdefault(app, {})
    # setdefault, so that two threads that find none use the same one
    return stores.get(setting) or stores.setdefault(setting, _opened_by(app, setting))


def check_stores(app: Celery) -> None:
    """Refuse a store that can never work; called when a worker starts.

    A store that cannot be reached now is accepted.  Later every problem may pass.

    Raises:
        ImproperlyConfigured: with the setting, the cause, and what to do.
    """
    for setting in settings_of(app):
        try:
            open_store(app, setting).check()
        except StoreError as exc:
            problem = exc.problem if isinstance(exc, UnusableStoreError) else lasting_cause(exc)
            if problem is not None:
                raise ImproperlyConfigured(f"{_named(app, setting)}: {problem}") from exc


def stores_of(app: Celery) -> list[Store]:
    """Return the stores that the app's tasks use, each once."""
    return list({id(store): store for store in (open_store(app, one) for one in settings_of(app))}.values())


def settings_of(app: Celery) -> list[str]:
    """Return the values of ``continuation_store`` of the app and of its tasks, each once."""
    own = [conf.setting(task, "store") for task in list(app.tasks.values())]
    return list(dict.fromkeys([conf.app_setting(app, "store"), *own]))


def without_store(app: Celery) -> str | None:
    """Return why ``"auto"`` finds no store for this app, or None if it finds one."""
    return _auto(app)[1]


def _opened_by(app: Celery, setting: str) -> Store:
    """Open the store.  Raises ImproperlyConfigured, with the setting, for whatever a driver raises."""
    try:
        return _open(app, setting)
    except (ImproperlyConfigured, StoreError):
        raise
    except Exception as exc:
        url = setting if setting != "auto" else _auto_url(app)[1]
        raise ImproperlyConfigured(f"{_named(app, setting)}: {_without_secrets(exc, url)}") from None


def _named(app: Celery, setting: str) -> str:
    """Name a setting without its value, which may contain a password."""
    if setting == "auto":
        return f"continuation_store = 'auto' uses {_auto_url(app)[0] or 'the message'}, which cannot keep records"
    scheme = _scheme(setting)
    return f"continuation_store = {f'{scheme}://…' if scheme else setting!r} cannot be used"


def _without_secrets(error: Exception, url: str) -> str:
    """Return an error's text, or advice if the text may quote user or password."""
    text = " ".join(str(error).split())
    parts = re.split(r"[:/@?#&=;]", url.partition("://")[2].rpartition("@")[0] or url.partition("://")[2])
    if any(len(part) > 1 and part in text for part in parts):
        text = "the URL cannot be parsed"
    return f"{type(error).__name__}: {text}. Percent-encode special characters in user and password"


def _open(app: Celery, setting: str) -> Store:
    if setting == "message":
        return MessageStore()
    if setting == "memory":
        return MemoryStore()
    if setting == "auto":
        return _auto(app)[0]()
    if conf.is_path(setting):
        return _own(app, setting)
    factory_of_url = _by_url(app, setting)
    if factory_of_url is None:
        problem = f"; it takes {conf.SETTINGS['store'].allowed}"
        if conf.is_database(_scheme(setting)):
            problem = f": {_IN_MEMORY}"
        raise ImproperlyConfigured(f"continuation_store = {masked(setting)!r} is not allowed{problem}")
    try:
        return factory_of_url()
    except ValueError:  # its text may have a part of the password in it
        raise ImproperlyConfigured(f"continuation_store = {masked(setting)!r} cannot be read as a URL") from None


def _own(app: Celery, path: str) -> Store:
    store = conf.found_at("store", path)(app, conf.namespace(app))
    if not isinstance(store, Store):
        raise ImproperlyConfigured(
            f"continuation_store = {path!r} returned {masked(repr(store)):.80}, which is not a "
            "celery_continuations.stores.Store"
        )
    return store


def _auto(app: Celery) -> tuple[Callable[[], Store], str | None]:
    """Choose: the result backend if it can compare-and-set, else a Redis broker, else the message."""
    backend = conf.celery_setting(app, "result_backend")
    broker = _broker(app)
    setting, url = _auto_url(app)
    factory = _by_url(app, url, of_broker=setting != "result_backend") if setting else None
    if factory is not None:
        return factory, None
    kind = backend if backend == "django-db" else _scheme(backend)
    kind = f"{kind}, and {_IN_MEMORY}" if conf.is_database(kind) else kind or "none"
    return MessageStore, (
        f"Neither the result backend ({kind}) nor the broker ({_scheme(broker[0]) if broker else 'none'}) can keep "
        "the progress of continuable tasks, so it travels in their messages only: a worker that is stopped "
        "loses nothing, but one that is killed starts its tasks over, and nothing keeps two deliveries of one "
        "task from running at once. Set continuation_store to a redis://, db+postgresql://, db+sqlite:/// or file:// "
        "URL to be safe from that, "
        "or to 'message' to accept it."
        + (f" With {backend}, 'celery_continuations.contrib.django' in INSTALLED_APPS does." if kind == backend else "")
    )


def _auto_url(app: Celery) -> tuple[str, str]:
    """Return the setting from which ``"auto"`` takes its URL, and the URL; ``""`` if there is none.

    Raises:
        ImproperlyConfigured: when it would be one of several Redis brokers.
    """
    backend = conf.celery_setting(app, "result_backend")
    if backend == "django-db" and _has_django_app():
        return "result_backend", "django"
    if isinstance(backend, str) and _by_url(app, backend) is not None:
        return "result_backend", backend
    read, both = conf.celery_setting(app, "broker_read_url"), conf.celery_setting(app, "broker_url")
    name = "broker_url" if read in (None, both) else "broker_read_url"
    urls = _broker(app)
    if not urls or _scheme(urls[0]) not in _REDIS:
        return "", ""
    if len(urls) > 1 and _scheme(urls[0]) != "sentinel":
        raise ImproperlyConfigured(
            f"continuation_store = 'auto' cannot choose one of the {len(urls)} Redis servers in {name}: all workers "
            "must use the same one. Set continuation_store to its URL"
        )
    return name, ";".join(urls)


def _broker(app: Celery) -> list[str]:
    """Return the URLs of the broker, each server's on its own."""
    found = conf.celery_setting(app, "broker_read_url") or conf.celery_setting(app, "broker_url") or ()
    urls = [found] if isinstance(found, str) else [str(url) for url in found]
    return [one for url in urls for one in url.split(";") if one]


def _has_django_app() -> bool:
    from django.apps import apps

    return bool(apps.is_installed("celery_continuations.contrib.django"))


def _by_url(app: Celery, url: str, *, of_broker: bool = False) -> Callable[[], Store] | None:
    scheme = _scheme(url)
    space = conf.namespace(app)
    if url == "django" or scheme == "django":

        def open_django() -> Store:
            from celery_continuations.stores.django import DjangoStore

            return DjangoStore(url.partition("://")[2] or "default", space)

        return open_django
    if scheme in _REDIS:

        def open_redis() -> Store:
            from celery_continuations.stores.redis import RedisStore, impatient

            # Celery itself reads the URL and its related settings: TLS, Sentinel, credentials.
            owner = OfBroker(app) if of_broker else None
            backend = _backend(owner, owner.url(url)) if owner else _backend(app, url)
            backend.connparams.update(impatient(backend.connparams))
            return RedisStore(backend.client, space)

        return open_redis
    if scheme == "file":

        def open_files() -> Store:
            from celery_continuations.stores.filesystem import FilesystemStore

            return FilesystemStore(unquote(urlparse(url).path), space)

        return open_files
    if conf.is_database(scheme) and not _in_memory(url):

        def open_database() -> Store:
            from celery_continuations.stores.database import DatabaseStore

            options = conf.celery_setting(app, "database_engine_options")
            return DatabaseStore(url.removeprefix("db+"), space, options)

        return open_database
    return None


def _in_memory(url: str) -> bool:
    scheme, _, rest = url.partition("://")
    if "sqlite" not in scheme:
        return False
    path, _, query = rest.partition("?")
    return path in ("", "/") or ":memory:" in path or "mode=memory" in query


def _backend(app: Any, url: str) -> Any:
    found: Any = by_url(url, app.loader)
    backend, url = found
    if _scheme(url) == "sentinel" and not app.conf.result_backend_transport_options.get("master_name"):
        options = "broker_transport_options" if isinstance(app, OfBroker) else "result_backend_transport_options"
        raise ImproperlyConfigured(f"continuation_store: a sentinel:// URL needs master_name in {options}")
    return backend(app=app, url=url)


def _scheme(url: Any) -> str:
    return masked(url).partition("://")[0] if isinstance(url, str) else ""
