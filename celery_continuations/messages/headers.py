"""The names by which this library's part of a message is found."""

from __future__ import annotations

__all__ = ["CHANGED", "DELIVERY", "GENERATION", "OWN_HEADERS", "SNAPSHOT"]

#: The header that carries the generation a message continues.
GENERATION = "continuation_generation"

#: The header with the time, in seconds since the epoch, since which a task has waited for code that can resume it.
CHANGED = "continuation_changed"

#: The key of the message's body that carries the snapshot: RabbitMQ closes the connection on a large header.
SNAPSHOT = "continuation"

#: The name in a task's request of what only the main process knows of its message.
DELIVERY = "continuation_delivery"

#: What this library adds to a request, of which Celery makes headers.
OWN_HEADERS = (GENERATION, CHANGED, SNAPSHOT, DELIVERY, "continuation_execution")
