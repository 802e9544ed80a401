"""The names of this library's parts of a message."""

from __future__ import annotations

__all__ = ["CHANGED", "DELIVERY", "GENERATION", "OWN_HEADERS", "SNAPSHOT"]

#: The header that carries the generation a message continues.
GENERATION = "continuation_generation"

#: The header with the time, in seconds since the epoch, at which a task began to wait for code that can resume it.
CHANGED = "continuation_changed"

#: The key of the message's body that carries the snapshot: RabbitMQ closes the connection on a large header.
SNAPSHOT = "continuation"

#: The key in a task's request of what only the main process knows about its message.
DELIVERY = "continuation_delivery"

#: What this library adds to a request, and Celery copies to the headers.
OWN_HEADERS = (GENERATION, CHANGED, SNAPSHOT, DELIVERY, "continuation_execution")
