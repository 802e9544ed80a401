"""Show URLs without their passwords."""

from __future__ import annotations

import re

__all__ = ["NOT_SHOWN", "masked", "masked_setting"]

NOT_SHOWN = "(not shown)"

_MASK = "**"

# Parameters of a URL that contain a secret, by their names.
_SECRETS = re.compile(r"(?i)([?&][^=&]*(?:pass|pwd|secret|token|key)[^=&]*=)[^&]+")

# A colon before anything but a port, or the digits of an IPv6 address: this may be a misplaced password.
_NO_PORT = re.compile(r":(?!\d*(?:[/?;,:]|$))(?![0-9a-f:]*\])[^/?]*")


def masked(url: str) -> str:
    """Return a URL without its passwords.  Of a mistyped one, it hides too much rather than too little.

    >>> masked("db+postgresql://service:pass@word@host/records?sslpassword=b")
    'db+postgresql://service:**@host/records?sslpassword=**'
    >>> masked("sentinel://:a@one:26379;sentinel://:b@two:26379"), masked("redis:/:a@host"), masked("redis://:a")
    ('sentinel://:**@two:26379', '**@host', 'redis://:**')
    >>> masked("redis://host:6379/0"), masked("file:///var/a@b"), masked("postgresql://service@host/records")
    ('redis://host:6379/0', 'file:///var/a@b', 'postgresql://service@host/records')
    """
    scheme, separator, rest = url.partition("://")
    before, at, hosts = rest.rpartition("@")
    if not separator:
        shown = _MASK + url[url.rindex("@") :] if "@" in url else url
    elif rest.startswith("/"):
        shown = url
    else:
        user, colon, _ = before.partition(":")
        password = f":{_MASK}" if colon else ""
        hosts = f":{_MASK}" if hosts.startswith(":") else _NO_PORT.sub(f":{_MASK}", hosts)
        shown = f"{scheme}://{user}{password}{at}{hosts}"
    return _SECRETS.sub(rf"\1{_MASK}", shown)


def masked_setting(name: str, value: object) -> object:
    """Return the value of a setting as reports and errors show it.

    >>> masked_setting("continuation_store", "redis://:a@host"), masked_setting("continuation_lease", 5)
    ('redis://:**@host', 5)
    >>> masked_setting("continuation_store", ("redis://:a@host", 1))
    '(not shown)'
    """
    name = name.lower()
    if "continuation_" not in name:
        return value
    if name.endswith("secret") and value is not None:
        return NOT_SHOWN
    if isinstance(value, str):
        return masked(value)
    is_simple = value is None or isinstance(value, (bool, int, float))
    return value if is_simple or not name.endswith(("_store", "_url")) else NOT_SHOWN
