"""The names of this library's parts of a message."""

from __future__ import annotations

__all__ = ["AWAITED", "CHANGED", "DELIVERY", "GENERATION", "OWN_HEADERS", "PARENT", "SNAPSHOT"]

#: The header that carries the generation a message continues.
GENERATION = "continuation_generation"

#: The header with the time, in seconds since the epoch, at which a task began to wait for code that can resume it.
CHANGED = "continuation_changed"

#: A child's header with the id and the name of the task that waits for it.
PARENT = "continuation_parent"

#: The header of a part of a chain or chord with the id of the result that the parent waits for.
AWAITED = "continuation_awaited"

#: The key of the message's body that carries the snapshot: RabbitMQ closes the connection on a large header.
SNAPSHOT = "continuation"

#: The key in a task's request of what only the main process knows about its message.
DELIVERY = "continuation_delivery"

#: What this library adds to a request, and Celery copies to the headers.
OWN_HEADERS = (GENERATION, CHANGED, SNAPSHOT, DELIVERY, "continuation_execution")
