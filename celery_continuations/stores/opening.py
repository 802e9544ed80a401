"""From the setting ``continuation_store`` to a store."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse
from weakref import WeakKeyDictionary

from celery.app.backends import by_url
from celery.exceptions import ImproperlyConfigured

from celery_continuations import conf
from celery_continuations.stores.base import Store
from celery_continuations.stores.memory import MemoryStore
from celery_continuations.stores.message import MessageStore

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["open_store", "without_store"]

_REDIS = ("redis", "rediss", "redis+socket", "sentinel")

_opened: WeakKeyDictionary[Celery, dict[str, Store]] = WeakKeyDictionary()


def open_store(app: Celery, setting: str) -> Store:
    """Return the store that ``setting`` names; the same one each time, for one app.

    Args:
        app: whose namespace, and whose result backend and broker ``"auto"`` looks at.
        setting: a value of ``continuation_store``.

    Raises:
        ImproperlyConfigured: for a URL of an unknown kind.
        StoreError: when the store's driver is missing.
    """
    stores = _opened.setdefault(app, {})
    if setting not in stores:
        stores[setting] = _open(app, setting)
    return stores[setting]


def without_store(app: Celery) -> str | None:
    """Say why ``"auto"`` finds no store for this app, or return None when it does."""
    return _auto(app)[1]


def _open(app: Celery, setting: str) -> Store:
    if setting == "message":
        return MessageStore()
    if setting == "memory":
        return MemoryStore()
    if setting == "auto":
        return _auto(app)[0]()
    factory_of_url = _by_url(app, setting)
    if factory_of_url is None:
        raise ImproperlyConfigured(
            f"continuation_store = {setting!r} is not allowed; it takes "
            f"{conf.SETTINGS['store'].allowed}: redis://, rediss://, redis+socket://, sentinel:// or file://"
        )
    return factory_of_url()


def _auto(app: Celery) -> tuple[Callable[[], Store], str | None]:
    """Choose: the result backend if it can compare-and-set, else a Redis broker, else the message."""
    backend = conf.celery_setting(app, "result_backend")
    broker = conf.celery_setting(app, "broker_read_url") or conf.celery_setting(app, "broker_url")
    for url in (backend, broker if _scheme(broker) in _REDIS else None):
        factory = _by_url(app, url) if isinstance(url, str) else None
        if factory is not None:
            return factory, None
    return MessageStore, (
        f"Neither the result backend ({_scheme(backend) or 'none'}) nor the broker ({_scheme(broker)}) can keep "
        "the progress of continuable tasks, so it travels in their messages only: a worker that is stopped "
        "loses nothing, but one that is killed starts its tasks over, and nothing keeps two deliveries of one "
        "task from running at once. Set continuation_store to a redis:// or file:// URL to be safe from that, "
        "or to 'message' to accept it."
    )


def _by_url(app: Celery, url: str) -> Callable[[], Store] | None:
    scheme = _scheme(url)
    space = conf.namespace(app)
    if scheme in _REDIS:

        def open_redis() -> Store:
            from celery_continuations.stores.redis import RedisStore

            # Celery's own reading of the URL and of the settings that go with it: TLS, timeouts, Sentinel.
            return RedisStore(_backend(app, url).client, space)

        return open_redis
    if scheme == "file":

        def open_files() -> Store:
            from celery_continuations.stores.filesystem import FilesystemStore

            return FilesystemStore(unquote(urlparse(url).path), space)

        return open_files
    return None


def _backend(app: Celery, url: str) -> Any:
    backend, url = by_url(url, app.loader)
    return backend(app=app, url=url)


def _scheme(url: Any) -> str:
    return url.partition("://")[0] if isinstance(url, str) else ""
