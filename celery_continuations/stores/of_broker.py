"""An app whose result backend is its broker: Celery's backend then reads the broker's settings for TLS and Sentinel."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from celery_continuations import conf

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["OfBroker"]


class OfBroker:
    """Stand in for the app, for a result backend at the broker's address.

    Args:
        app: the app.
    """

    def __init__(self, app: Celery) -> None:
        use_ssl = conf.celery_setting(app, "broker_use_ssl")
        if use_ssl is True:
            use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}  # as kombu understands it
        self._app = app
        self.conf = _Conf(
            app.conf,
            redis_backend_use_ssl=use_ssl or None,
            result_backend_transport_options=conf.transport_options(app),
        )

    def url(self, broker_url: str) -> str:
        """Return the broker's URL as a backend reads it: with TLS in its scheme, which Celery before 5.6 wants.

        >>> from celery import Celery
        >>> OfBroker(Celery(broker="redis://a/0", broker_use_ssl=True)).url("redis://a/0")
        'rediss://a/0'
        """
        uses_tls = self.conf.redis_backend_use_ssl and broker_url.startswith("redis://")
        return broker_url.replace("redis://", "rediss://", 1) if uses_tls else broker_url

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)


class _Conf:
    def __init__(self, settings: Any, **changes: Any) -> None:
        self._settings = settings
        self._changes = changes

    def __getattr__(self, name: str) -> Any:
        return self._changes[name] if name in self._changes else getattr(self._settings, name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting, as the app's own configuration does."""
        return self._changes[name] if name in self._changes else self._settings.get(name, default)
