"""The route of a message: the queue, or the exchange and routing key, it is published to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.entity import Exchange, Queue

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["destination", "queue_names", "route"]


def route(delivery_info: dict[str, Any] | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return the route in ``options`` of ``apply_async``, or else the one on which the message arrived."""
    chosen = {name: options[name] for name in ("queue", "exchange", "routing_key") if options.get(name) is not None}
    if chosen:
        return chosen
    info = delivery_info or {}
    return {"exchange": info.get("exchange") or "", "routing_key": info.get("routing_key") or ""}


def destination(app: Celery, route: dict[str, Any]) -> dict[str, Any]:
    """Turn a route into arguments of ``send_task_message``."""
    if "queue" in route:
        return route
    exchange, key = route.get("exchange", ""), route.get("routing_key", "")
    queues = app.amqp.queues.values()
    if exchange == "":
        # The default exchange routes by queue name.  Our own Queue keeps Celery from using the route of a declared
        # queue of that name, which is still declared.
        return {
            "queue": Queue(key, Exchange(""), routing_key=key),
            "declare": [queue for queue in queues if queue.name == key],
        }
    return {
        "exchange": exchange,
        "routing_key": key,
        # With the type "direct" and an empty key Celery would use the default exchange instead.
        "exchange_type": "topic",
        # On virtual transports an exchange has no type, and so no queues, until it is declared.
        "declare": _queues_of(app, exchange),
    }


def queue_names(app: Celery, route: dict[str, Any]) -> list[str]:
    """Return the names of the queues that a route leads to, as far as the app knows them."""
    if "queue" in route:
        return [route["queue"]]
    if not route.get("exchange"):
        return [route["routing_key"]]
    return [queue.name for queue in _queues_of(app, route["exchange"])]


def _queues_of(app: Celery, exchange: str) -> list[Queue]:
    return [queue for queue in app.amqp.queues.values() if queue.exchange and queue.exchange.name == exchange]
