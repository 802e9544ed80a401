"""The same message, one generation on.

Built from the request, and not by ``Task.signature_from_request``, which loses the parent id,
serializer, compression, delivery mode and correlation id, and on Redis every message of a
topic exchange.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.pools import producers
from kombu.utils import json
from kombu.utils.functional import maybe_list

from celery_continuations import celery_internals, conf
from celery_continuations.exceptions import StoreError
from celery_continuations.messages.body import Body, carried

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = [
    "CHANGED",
    "DELIVERY",
    "GENERATION",
    "SNAPSHOT",
    "Kept",
    "Publisher",
    "context_of",
    "is_in_chord",
    "keepable",
    "kept",
    "publish_kept",
    "publisher",
    "republish",
    "task_name",
]

#: The header that carries the generation a message continues.
GENERATION = "continuation_generation"

#: The header that says since when a task has been handed back, in seconds since the epoch: no code fits it.
CHANGED = "continuation_changed"

#: The key of the message's body that carries the snapshot: RabbitMQ closes the connection on a large header.
SNAPSHOT = "continuation"

#: Where a task finds, in its request, what only the main process knows of its message.
DELIVERY = "continuation_delivery"

#: What this library puts into a request, of which Celery makes headers.
OWN_HEADERS = (GENERATION, CHANGED, SNAPSHOT, DELIVERY, "continuation_execution")

# Headers that the broker or this library put into a delivery, and that belong to that delivery only.
_NOT_THE_CALLERS = (
    *OWN_HEADERS,
    "redelivered",
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
)

# apply_async options that have another name, or another place, in a message.
_RENAMED = {"link": "callbacks", "link_error": "errbacks"}
_IN_PROPERTIES = ("priority", "delivery_mode", "serializer", "compression", "correlation_id")
_IN_BODY = ("args", "kwargs", "callbacks", "errbacks", "chain", "chord")


def republish(
    task: Task[..., object], request: Any, *, generation: int, snapshot: str | None, body: Body, options: dict[str, Any]
) -> None:
    """Publish the task of ``request`` again, with its arguments, callbacks and chain as they were sent.

    What the task has done to its arguments, or assigned to ``self.request.args``, ``chain`` or ``callbacks``, holds
    for its own execution only.  ``options`` of ``self.retry()`` redefine what was sent.

    Args:
        task: the task.
        request: of the execution that leaves.
        generation: the generation that the message continues.
        snapshot: the snapshot's JSON text, or None to carry none.
        body: of the message that the execution got.
        options: ``apply_async`` options that differ from the message's, ``args``, ``kwargs`` and
            ``retries`` among them.

    Raises:
        kombu.exceptions.OperationalError: when the broker cannot be reached.
        kombu.exceptions.EncodeError: when redefined parts cannot be serialized.
    """
    app = task.app
    message, body, sending = _message(task, request, body, options, started=generation > 0)
    headers, properties, _, sent_event = message
    args, kwargs, embed = body.decode()
    embed.pop(SNAPSHOT, None)
    if snapshot is not None:
        embed[SNAPSHOT] = snapshot
    if generation:
        headers[GENERATION] = generation
    with _producer(app) as producer:
        app.amqp.send_task_message(
            producer,
            task.name,
            (headers, properties, (args, kwargs, embed), sent_event),
            **sending,
            **_destination(app, _route(request.delivery_info, options)),
        )


def keepable(task: Task[..., object], request: Any, *, body: Body, options: dict[str, Any]) -> str:
    """Return the message that :func:`republish` would send, as a text that :class:`Publisher` can publish.

    The body is the received one, byte for byte, unless ``options`` redefine it or it carries a snapshot, which is
    older than the record's.  Takes and raises the same as :func:`republish`.
    """
    (headers, properties, *_), body, sending = _message(task, request, body, options, started=True)
    if getattr(request, SNAPSHOT, None) is not None:
        body = body.changed({SNAPSHOT: None})
    sending.pop("serializer", None)
    content, text = body.as_text()
    whole = {
        "task": task.name,
        "route": _route(request.delivery_info, options),
        "headers": headers,
        "properties": properties,
        "sending": sending,
        "content": content,
        "body": text,
        "chord": body.in_chord,
        "began": time.time(),
    }
    return str(json.dumps(whole))


class Publisher:
    """Publishes what :func:`keepable` has made.

    Args:
        app: whose broker.
        connection: to that broker, connected, and not shared.

    Attributes:
        producer: on that connection.
    """

    def __init__(self, app: Celery, connection: Any) -> None:
        self._app = app
        self._connection = connection
        self.producer: Any = app.amqp.Producer(connection.channel(), auto_declare=False)

    def publish(self, text: str, generation: int) -> None:
        """Publish a message, as one that continues ``generation``.

        Raises:
            StoreError: for a text that is not a message.
            kombu.exceptions.OperationalError: when the broker cannot be reached.
        """
        _send_kept(self._app, self.producer, text, generation, retry=False)  # there is another sweep

    def is_waiting(self, text: str) -> bool:
        """Whether there are messages in the queue that this one goes to, so that it may be among them."""
        route = _parsed(text)["route"]
        return any(self._count(name) for name in _queue_names(self._app, route))

    def _count(self, name: str) -> int:
        try:
            with self._connection.channel() as channel:
                return int(channel.queue_declare(queue=name, passive=True).message_count)
        except self._connection.channel_errors:
            return 0  # there is no such queue


@contextmanager
def publisher(app: Celery) -> Iterator[Publisher]:
    """Open a connection for a :class:`Publisher`; with confirms on AMQP.

    For the worker's main process: pooled connections would be inherited by the children that it forks.

    Raises:
        kombu.exceptions.OperationalError: when the broker cannot be reached, now or within the block.
    """
    with app.connection_for_write(transport_options=_confirming(app)) as connection:
        try:
            connection.connect()  # and now, so that nothing is taken up that could not be published
            yield Publisher(app, connection)
        except (*connection.connection_errors, *connection.channel_errors) as exc:
            raise OperationalError(f"{type(exc).__name__}: {exc}") from exc


def publish_kept(app: Celery, text: str, generation: int) -> None:
    """Publish what :func:`keepable` has made, from any process; raises as :meth:`Publisher.publish`."""
    with _producer(app) as producer:
        _send_kept(app, producer, text, generation)


def _send_kept(app: Celery, producer: Any, text: str, generation: int, **options: Any) -> None:
    message = _parsed(text)
    content_type, encoding = message["content"]
    body = carried(message["content"], message["body"], app)
    app.amqp.send_task_message(
        producer,
        message["task"],
        ({**message["headers"], GENERATION: generation}, message["properties"], body.data, None),
        content_type=content_type,  # with which kombu takes the body as it is
        content_encoding=encoding,
        **options,
        **message["sending"],
        **_destination(app, message["route"]),
    )


def context_of(app: Celery, text: str) -> dict[str, Any]:
    """Return what a request's context needs to know of a message of :func:`keepable` to tell a chord.

    Raises:
        kombu.exceptions.ContentDisallowed: for a body that the app does not accept.
        kombu.exceptions.DecodeError: for one that cannot be read.
    """
    message = _parsed(text)
    _, _, embedded = carried(message["content"], message["body"], app).decode()
    return {**message["headers"], **embedded}


def task_name(text: str) -> str:
    """Return the name of the task that a message of :func:`keepable` is for."""
    return str(_parsed(text)["task"])


class Kept(NamedTuple):
    """What a message of :func:`keepable` tells people.

    Attributes:
        task: the name of its task.
        began: when it was kept, which is when the task began, in seconds since the epoch; None where that is not said.
        args, kwargs: as the caller's process showed them.
    """

    task: str
    began: float | None
    args: str | None
    kwargs: str | None


def kept(text: str) -> Kept:
    """Return what a message of :func:`keepable` tells people."""
    message = _parsed(text)
    headers = message["headers"]
    return Kept(message["task"], message.get("began"), headers.get("argsrepr"), headers.get("kwargsrepr"))


def is_in_chord(text: str) -> bool:
    """Whether the task of a message of :func:`keepable` is a member of a chord."""
    return bool(_parsed(text).get("chord"))


def _parsed(text: str) -> Any:
    try:
        message = json.loads(text)
        for key in ("task", "route", "headers", "properties", "sending", "content", "body"):
            message[key]
    except (ValueError, TypeError, KeyError) as exc:
        raise StoreError("record", f"what it keeps is not a message: {exc!r}") from exc
    return message


def _message(
    task: Task[..., object], request: Any, body: Body, options: dict[str, Any], started: bool
) -> tuple[Any, Body, dict[str, Any]]:
    """Return Celery's task message, to be given a body; that body; and the properties to send it with."""
    options = {_RENAMED.get(name, name): value for name, value in options.items()}
    for name in _RENAMED.values():
        options[name] = maybe_list(options.get(name))
    changes, serializer = _parts(options, _IN_BODY), options.get("serializer")
    if changes or serializer not in (None, body.serializer):
        body = body.changed(changes, serializer)
    fields = {**_fields(task, request), **_parts(options, _FIELDS)}
    for place, name in enumerate(("args", "kwargs")):
        if name in changes or fields[name + "repr"] is None:
            fields.update({name: changes[name] if name in changes else body.decode()[place], name + "repr": None})
    if not started:
        fields.setdefault("expires", request.expires)
    stamps = dict(request.stamps or {})
    message = task.app.amqp.create_task_message(**fields, **stamps)
    message.headers.update(_callers_headers(request), **(options.get("headers") or {}))
    return message, body, {**_properties(request, body), **_parts(options, _IN_PROPERTIES)}


_FIELDS = (
    "countdown",
    "eta",
    "expires",
    "retries",
    "time_limit",
    "soft_time_limit",
    "shadow",
    "ignore_result",
    "reply_to",
)


def _parts(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names if options.get(name) is not None}


def _fields(task: Task[..., object], request: Any) -> dict[str, Any]:
    """What ``create_task_message`` takes, all but ``expires``, which a started task has met."""
    time_limit, soft_time_limit = request.timelimit or (None, None)
    return {
        "task_id": request.id,
        "name": task.name,
        "group_id": request.group,
        "group_index": request.group_index,
        "retries": request.retries,
        "reply_to": request.reply_to,
        "time_limit": time_limit,
        "soft_time_limit": soft_time_limit,
        "create_sent_event": conf.celery_setting(task.app, "task_send_sent_event"),
        "root_id": request.root_id,
        "parent_id": request.parent_id,
        "shadow": request.shadow,
        "origin": request.origin,
        "ignore_result": celery_internals.ignore_result_of(task, request),
        "argsrepr": getattr(request, "argsrepr", None),
        "kwargsrepr": getattr(request, "kwargsrepr", None),
        "stamped_headers": request.stamped_headers,
        "replaced_task_nesting": request.replaced_task_nesting,
    }


def _callers_headers(request: Any) -> dict[str, Any]:
    return {name: value for name, value in (request.headers or {}).items() if name not in _NOT_THE_CALLERS}


def _properties(request: Any, body: Body) -> dict[str, Any]:
    properties = request.properties or {}
    kept = {
        "serializer": body.serializer,
        "compression": getattr(request, "compression", None),
        "correlation_id": request.correlation_id,
        "priority": (request.delivery_info or {}).get("priority"),
        "delivery_mode": properties.get("delivery_mode"),
    }
    if kept["delivery_mode"] is not None:
        kept["delivery_mode"] = int(kept["delivery_mode"])
    return {name: value for name, value in kept.items() if value is not None}


def _route(delivery_info: dict[str, Any] | None, options: dict[str, Any]) -> dict[str, Any]:
    """Where to: what ``options`` say, else where the message came from."""
    chosen = _parts(options, ("queue", "exchange", "routing_key"))
    if chosen:
        return chosen
    info = delivery_info or {}
    return {"exchange": info.get("exchange") or "", "routing_key": info.get("routing_key") or ""}


def _destination(app: Celery, route: dict[str, Any]) -> dict[str, Any]:
    """Turn a route into what ``send_task_message`` takes."""
    if "queue" in route:
        return route
    exchange, key = route.get("exchange", ""), route.get("routing_key", "")
    queues = app.amqp.queues.values()
    if exchange == "":
        # The default exchange goes by the queue's name; our own Queue keeps Celery from taking the
        # route of a declared one of that name, which is declared all the same.
        return {
            "queue": Queue(key, Exchange(""), routing_key=key),
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


def _queue_names(app: Celery, route: dict[str, Any]) -> list[str]:
    """Return the queues that a route leads to, as far as the app knows them."""
    if "queue" in route:
        return [route["queue"]]
    if not route.get("exchange"):
        return [route["routing_key"]]
    return [
        queue.name for queue in app.amqp.queues.values() if queue.exchange and queue.exchange.name == route["exchange"]
    ]


def _producer(app: Celery) -> Any:
    """Return a producer from a pool; on AMQP one whose publishes are confirmed."""
    if conf.driver_type(app) == "amqp":
        return producers[app.connection_for_write(transport_options=_confirming(app))].acquire(block=True)
    return app.producer_pool.acquire(block=True)


def _confirming(app: Celery) -> dict[str, Any]:
    options = conf.transport_options(app)
    return {**options, "confirm_publish": True} if conf.driver_type(app) == "amqp" else options
