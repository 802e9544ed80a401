"""The same message, one generation on.

Built from the request, and not by ``Task.signature_from_request``, which loses the parent id,
serializer, compression, delivery mode and correlation id, and on Redis every message of a
topic exchange.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.entity import Exchange, Queue
from kombu.pools import producers

from celery_continuations import conf, seams

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = ["GENERATION", "SNAPSHOT", "republish"]

#: The header that carries the generation a message continues.
GENERATION = "continuation_generation"

#: The key of the message's body that carries the snapshot: RabbitMQ closes the connection on a large header.
SNAPSHOT = "continuation"

# Headers that the broker or this library put into a delivery, and that belong to that delivery only.
_NOT_THE_CALLERS = (
    GENERATION,
    SNAPSHOT,
    "continuation_delivery",
    "continuation_execution",
    "redelivered",
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
)

# apply_async options that have another name, or another place, in a message.
_RENAMED = {"link": "callbacks", "link_error": "errbacks"}
_IN_PROPERTIES = ("priority", "delivery_mode", "serializer", "compression", "correlation_id")


def republish(
    task: Task,
    request: Any,
    *,
    generation: int,
    snapshot: str | None,
    delivery: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Publish the task of ``request`` again.

    Args:
        task: the task.
        request: of the execution that leaves.
        generation: the generation that the message continues.
        snapshot: the snapshot's JSON text, or None to carry none.
        delivery: what the main process knew of the message, e.g. its content type.
        options: ``apply_async`` options that differ from the message's, ``args``, ``kwargs`` and
            ``retries`` among them.

    Raises:
        kombu.exceptions.OperationalError: when the broker cannot be reached.
    """
    app = task.app
    options = {_RENAMED.get(name, name): value for name, value in options.items()}
    fields = {**_fields(task, request), **_parts(options, _FIELDS)}
    for name in ("args", "kwargs"):
        if name in options:
            fields[name + "repr"] = None  # made anew
    if generation == 0:
        fields.setdefault("expires", request.expires)  # it has not started yet
    stamps = dict(request.stamps or {})
    message = app.amqp.create_task_message(**fields, **stamps)
    if snapshot is not None:
        message.body[2][SNAPSHOT] = snapshot
    headers = {**_callers_headers(request), **(options.get("headers") or {})}
    if generation:
        headers[GENERATION] = generation
    sending = {**_properties(request, delivery), **_parts(options, _IN_PROPERTIES)}
    with _producer(app) as producer:
        app.amqp.send_task_message(
            producer, task.name, message, headers=headers, **sending, **_route(app, request, options)
        )


_FIELDS = (
    "args",
    "kwargs",
    "countdown",
    "eta",
    "expires",
    "retries",
    "callbacks",
    "errbacks",
    "time_limit",
    "soft_time_limit",
    "shadow",
    "ignore_result",
    "reply_to",
    "chain",
    "chord",
)


def _parts(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names if options.get(name) is not None}


def _fields(task: Task, request: Any) -> dict[str, Any]:
    """What ``create_task_message`` takes, all but ``expires``, which a started task has met."""
    time_limit, soft_time_limit = request.timelimit or (None, None)
    return {
        "task_id": request.id,
        "name": task.name,
        "args": request.args,
        "kwargs": request.kwargs,
        "group_id": request.group,
        "group_index": request.group_index,
        "retries": request.retries,
        "chord": request.chord,
        "callbacks": request.callbacks,
        "errbacks": request.errbacks,
        "reply_to": request.reply_to,
        "time_limit": time_limit,
        "soft_time_limit": soft_time_limit,
        "create_sent_event": conf.celery_setting(task.app, "task_send_sent_event"),
        "root_id": request.root_id,
        "parent_id": request.parent_id,
        "shadow": request.shadow,
        "chain": request.chain,
        "origin": request.origin,
        "ignore_result": seams.ignore_result_of(task, request),
        "argsrepr": getattr(request, "argsrepr", None),
        "kwargsrepr": getattr(request, "kwargsrepr", None),
        "stamped_headers": request.stamped_headers,
        "replaced_task_nesting": request.replaced_task_nesting,
    }


def _callers_headers(request: Any) -> dict[str, Any]:
    return {name: value for name, value in (request.headers or {}).items() if name not in _NOT_THE_CALLERS}


def _properties(request: Any, delivery: dict[str, Any]) -> dict[str, Any]:
    properties = request.properties or {}
    kept = {
        "serializer": seams.serializer_of(delivery.get("content_type")),
        "compression": getattr(request, "compression", None),
        "correlation_id": request.correlation_id,
        "priority": (request.delivery_info or {}).get("priority"),
        "delivery_mode": properties.get("delivery_mode"),
    }
    if kept["delivery_mode"] is not None:
        kept["delivery_mode"] = int(kept["delivery_mode"])
    return {name: value for name, value in kept.items() if value is not None}


def _route(app: Celery, request: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Where to: what ``options`` say, else where the message came from."""
    chosen = _parts(options, ("queue", "exchange", "routing_key"))
    if chosen:
        return chosen
    info = request.delivery_info or {}
    exchange, key = info.get("exchange") or "", info.get("routing_key") or ""
    queues = app.amqp.queues.values()
    if exchange == "":
        # The default exchange goes by the queue's name; our own Queue keeps Celery from taking the
        # route of a declared one of that name, which is declared all the same.
        return {
            "queue": Queue(key, Exchange(""), routing_key=key),  # type: ignore[no-untyped-call]
            "declare": [queue for queue in queues if queue.name == key],
        }
    return {
        "exchange": exchange,
        "routing_key": key,
        # With the type "direct" and an empty key Celery would go by the default exchange instead.
        "exchange_type": "topic",
        # On virtual transports an exchange has no type, and so no queues, until it is declared.
        "declare": [queue for queue in queues if queue.exchange and queue.exchange.name == exchange],
    }


def _producer(app: Celery) -> Any:
    """Return a producer from a pool; on AMQP one whose publishes are confirmed."""
    if conf.driver_type(app) == "amqp":
        options = {**conf.transport_options(app), "confirm_publish": True}
        connection = app.connection_for_write(transport_options=options)
        return producers[connection].acquire(block=True)
    return app.producer_pool.acquire(block=True)
