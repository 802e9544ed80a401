"""The main process: what it adds to a task on its way to the pool, and what it refuses.

A stopping worker neither runs nor keeps a continuation: it may be killed before it gives it
back, and on Redis the message would then be out of reach for the visibility timeout.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.worker import strategy as celery_strategy
from celery.worker.request import Request as CeleryRequest

from celery_continuations.republish import GENERATION
from celery_continuations.worker.flag import flag_of

__all__ = ["DELIVERY", "Request", "strategy"]

logger = logging.getLogger(__name__)

#: Where a task finds, in its request, what only the main process knows of its message.
DELIVERY = "continuation_delivery"


class Request(CeleryRequest):  # type: ignore[misc]
    """Tells the task where its worker's stop flag is, and how its message was serialized."""

    def __init__(self, message: Any, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        flag = flag_of(self.hostname)
        self.request_dict[DELIVERY] = {
            "flag": flag.path if flag else None,
            "content_type": message.content_type,
        }


def strategy(task: Any, app: Any, consumer: Any, **kwargs: Any) -> Callable[..., Any]:
    """Celery's default strategy, but for continuations that reach a stopping worker."""
    handle = celery_strategy.default(task, app, consumer, **kwargs)
    flag = flag_of(consumer.hostname)

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **kwargs: Any) -> Any:
        if flag is not None and flag.level and (message.headers or {}).get(GENERATION):
            # Consume no more first, or the message given back would come again at once.
            if consumer.task_consumer is not None:
                consumer.task_consumer.cancel()
            message.requeue()
            logger.info(
                "Task %s[%s] given back: this worker is stopping",
                task.name,
                message.headers["id"],
                extra={"action": "given_back", "task_id": message.headers["id"], "task_name": task.name},
            )
            return None
        return handle(message, body, ack, reject, callbacks, **kwargs)

    return on_message
