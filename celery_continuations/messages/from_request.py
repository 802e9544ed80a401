"""Build a task's next message from its request: the same message, for the next generation.

``Task.signature_from_request`` would lose the parent id, serializer, compression, delivery mode and correlation id; on
Redis it would lose every message of a topic exchange.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from kombu.utils.functional import maybe_list

from celery_continuations import celery_internals, conf
from celery_continuations.messages.body import Body
from celery_continuations.messages.headers import GENERATION, OWN_HEADERS, SNAPSHOT
from celery_continuations.messages.publishing import pooled_producer
from celery_continuations.messages.routing import destination, route
from celery_continuations.messages.saved import SavedMessage

if TYPE_CHECKING:
    from celery import Task

__all__ = ["republish", "saved_message"]

# Headers that the broker or this library adds to a single delivery.
_NOT_THE_CALLERS = (
    *OWN_HEADERS,
    "redelivered",
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
)

# apply_async options with another name, or another place, in a message.
_RENAMED = {"link": "callbacks", "link_error": "errbacks"}
_IN_PROPERTIES = ("priority", "delivery_mode", "serializer", "compression", "correlation_id")
_IN_BODY = ("args", "kwargs", "callbacks", "errbacks", "chain", "chord")
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


def republish(
    task: Task[..., object], request: Any, *, generation: int, snapshot: str | None, body: Body, options: dict[str, Any]
) -> None:
    """Publish the task of ``request`` again, with its arguments, callbacks and chain as they were sent.

    If a task changes its arguments, or assigns to ``self.request.args``, ``chain`` or ``callbacks``, the change affects
    that execution only.  ``options`` of ``self.retry()`` redefine what was sent.

    Args:
        task: the task.
        request: the request of the execution that hands over.
        generation: the generation that the message continues.
        snapshot: the snapshot's JSON text, or None to carry none.
        body: the body of the received message.
        options: ``apply_async`` options that override the message's, including ``args``, ``kwargs`` and ``retries``.

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
    headers[GENERATION] = generation  # 0: a copy of a fresh message
    with pooled_producer(app) as producer:
        app.amqp.send_task_message(
            producer,
            task.name,
            (headers, properties, (args, kwargs, embed), sent_event),
            **sending,
            **destination(app, route(request.delivery_info, options)),
        )


def saved_message(task: Task[..., object], request: Any, *, body: Body, options: dict[str, Any]) -> str:
    """Return the message that :func:`republish` would send, as the text of a :class:`SavedMessage`.

    The body is the received one, byte for byte, unless ``options`` redefine it or it carries a snapshot, which would be
    older than the record's.  Arguments and errors are those of :func:`republish`.
    """
    (headers, properties, *_), body, sending = _message(task, request, body, options, started=True)
    if getattr(request, SNAPSHOT, None) is not None:
        body = body.changed({SNAPSHOT: None})
    sending.pop("serializer", None)
    content, text = body.as_text()
    return SavedMessage(
        task=task.name,
        route=route(request.delivery_info, options),
        headers=headers,
        properties=properties,
        sending=sending,
        content=content,
        text=text,
        in_chord=body.in_chord,
        began=time.time(),
    ).dumps()


def _message(
    task: Task[..., object], request: Any, body: Body, options: dict[str, Any], started: bool
) -> tuple[Any, Body, dict[str, Any]]:
    """Return Celery's task message without its body, the body, and the properties to send it with."""
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


def _parts(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names if options.get(name) is not None}


def _fields(task: Task[..., object], request: Any) -> dict[str, Any]:
    """Return the arguments of ``create_task_message``, except ``expires``: a task that has started does not expire."""
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
    sent = {
        "serializer": body.serializer,
        "compression": getattr(request, "compression", None),
        "correlation_id": request.correlation_id,
        "priority": (request.delivery_info or {}).get("priority"),
        "delivery_mode": properties.get("delivery_mode"),
    }
    if sent["delivery_mode"] is not None:
        sent["delivery_mode"] = int(sent["delivery_mode"])
    return {name: value for name, value in sent.items() if value is not None}
