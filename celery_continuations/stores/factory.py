"""Open the store that ``continuation_store`` names."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse
from weakref import WeakKeyDictionary

from celery.app.backends import by_url
from celery.exceptions import ImproperlyConfigured

from celery_continuations import conf
from celery_continuations.masking import masked
from celery_continuations.stores.base import Store
from celery_continuations.stores.memory import MemoryStore
from celery_continuations.stores.message import MessageStore

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["open_store", "settings_of", "stores_of", "without_store"]

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
    return stores.get(setting) or stores.setdefault(setting, _open(app, setting))


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
    broker = conf.celery_setting(app, "broker_read_url") or conf.celery_setting(app, "broker_url")
    if backend == "django-db" and _has_django_app():
        return _by_url(app, "django") or MessageStore, None
    for url in (backend, broker if _scheme(broker) in _REDIS else None):
        factory = _by_url(app, url) if isinstance(url, str) else None
        if factory is not None:
            return factory, None
    kind = backend if backend == "django-db" else _scheme(backend)
    kind = f"{kind}, and {_IN_MEMORY}" if conf.is_database(kind) else kind or "none"
    return MessageStore, (
        f"Neither the result backend ({kind}) nor the broker ({_scheme(broker)}) can keep "
        "the progress of continuable tasks, so it travels in their messages only: a worker that is stopped "
        "loses nothing, but one that is killed starts its tasks over, and nothing keeps two deliveries of one "
        "task from running at once. Set continuation_store to a redis://, db+postgresql://, db+sqlite:/// or file:// "
        "URL to be safe from that, "
        "or to 'message' to accept it."
        + (f" With {backend}, 'celery_continuations.contrib.django' in INSTALLED_APPS does." if kind == backend else "")
    )


def _has_django_app() -> bool:
    from django.apps import apps

    return bool(apps.is_installed("celery_continuations.contrib.django"))


def _by_url(app: Celery, url: str) -> Callable[[], Store] | None:
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
            backend = _backend(app, url)
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


def _backend(app: Celery, url: str) -> Any:
    found: Any = by_url(url, app.loader)
    backend, url = found
    return backend(app=app, url=url)


def _scheme(url: Any) -> str:
    return masked(url).partition("://")[0] if isinstance(url, str) else ""
