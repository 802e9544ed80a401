"""Checks of the settings of callbacks, for ``doctor``."""

from __future__ import annotations

import importlib.util
import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from celery_continuations import conf

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["are_used", "problems"]

_MAKE_ONE = "Make one with python -c 'import secrets; print(secrets.token_urlsafe(32))'."

# In the secrets of documentation, examples and templates; a random one has them once in a billion.
_WORDS = (
    "secret",
    "example",
    "change",
    "insecure",
    "password",
    "only for",
    "only a test",
    "default",
    "sample",
    "dummy",
)

# Of 32 random hexadecimal digits, fewer are different once in 100,000.
_FEWEST_DIFFERENT = 8


def are_used(app: Celery) -> bool:
    """Whether the app makes or accepts callbacks."""
    return any(conf.app_setting(app, name) is not None for name in ("callback_url", "callback_secret"))


def problems(app: Celery) -> Iterator[str]:
    """Yield what is wrong with the settings of callbacks, and what to change; no secret is shown.

    >>> from celery import Celery
    >>> app = Celery(set_as_current=False)
    >>> app.conf.continuation_callback_secret = "x" * 32
    >>> print(*problems(app))
    continuation_callback_secret can be guessed: it has fewer than 8 different characters. Make one with ...
    """
    url, secrets = conf.app_setting(app, "callback_url"), conf.app_setting(app, "callback_secret")
    if secrets is None:
        unset = "continuation_callback_url is set, continuation_callback_secret is not: no address can be made"
        yield f"{unset}. {_MAKE_ONE}"
    for number, secret in enumerate([secrets] if isinstance(secrets, str) else secrets or ()):
        name = "continuation_callback_secret" + ("" if isinstance(secrets, str) else f"[{number}]")
        weakness = _weakness(secret)
        if weakness:
            yield f"{name} can be guessed: {weakness}. {_MAKE_ONE}"
    if url is not None:
        yield from _of_url(url)
    if importlib.util.find_spec("itsdangerous") is None:
        yield "itsdangerous is missing: pip install 'celery-continuations[callbacks]'."


def _weakness(secret: str) -> str | None:
    if len(set(secret)) < _FEWEST_DIFFERENT:
        return f"it has fewer than {_FEWEST_DIFFERENT} different characters"
    word = next((one for one in _WORDS if one in secret.lower()), None)
    return word and f"it has {word!r} in it, like those of examples"


def _of_url(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        yield (
            f"continuation_callback_url begins with http://{parts.hostname}: an eavesdropper can deliver. "
            "Serve callbacks over https://."
        )
    if parts.username or parts.password:
        yield (
            "continuation_callback_url has a user or a password in it, which each address would reveal. Remove it: the "
            "token is what allows a delivery."
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
