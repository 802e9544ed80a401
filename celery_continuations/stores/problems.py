"""Problems of a store that do not pass by themselves."""

from __future__ import annotations

from typing import Any

from celery_continuations.exceptions import StoreError

__all__ = ["LASTING", "UnstorableError", "UnusableStoreError", "is_cluster", "lasting_cause"]


class UnusableStoreError(StoreError):
    """The store can never work with the settings that this process has."""


class UnstorableError(StoreError):
    """The store can never keep this task: its id is too long, or is not a text that it accepts."""


#: What servers and drivers say of problems that do not pass, and what to do.  Only a starting worker judges by them:
#: later a password may be rotated, or a server be replaced.
LASTING = {
    "NoPermissionError": "give this user all permissions for the store's keys, EVAL and EVALSHA among them",
    "unknown command": "the server refuses scripts; enable EVAL and EVALSHA",
    "ClusterCrossSlotError": "Redis Cluster is not supported",
    "MovedError": "Redis Cluster is not supported",
    "without any password configured": "remove the password",
    "AuthenticationError": "correct user and password",
    "AuthenticationWrongNumberOfArgsError": "correct user and password",
    "DB index is out of range": "correct the number of the database",
    "CERTIFICATE_VERIFY_FAILED": "correct the TLS settings",
    "WRONG_VERSION_NUMBER": "the server does not use TLS, or not at this port",
    "password authentication failed": "correct user and password",
    "no pg_hba.conf entry": "allow this user and address in pg_hba.conf",
    "no password supplied": "give a password",
    "permission denied": "grant this user its privileges",
    "unable to open database file": "correct the path; the folder must exist and be writable",
    "file is not a database": "correct the path",
}


def lasting_cause(error: BaseException | None) -> str | None:
    """Return what a server or driver says of a problem that does not pass, and what to do; None for any other error."""
    while error is not None:
        text = " ".join(str(error).split())
        for sign, advice in LASTING.items():
            if sign in text:
                return f"{text[:300]}: {advice}"
        if "role" in text and "does not exist" in text:
            return f"{text[:300]}: create the role, or correct the user"
        if "database" in text and "does not exist" in text:
            return f"{text[:300]}: create the database, or correct its name"
        error = error.__cause__
    return None


def is_cluster(client: Any) -> bool:
    """Ask a server of Redis whether it is part of a cluster.  Raises the client's errors."""
    try:
        info = client.info("cluster")
    except Exception as exc:
        if type(exc).__name__ == "NoPermissionError":
            return False  # scripts show it
        raise
    return any(info.get(key) in (1, b"1") for key in ("cluster_enabled", b"cluster_enabled"))
