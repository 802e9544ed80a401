"""Publish saved messages, and open the producers for that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from celery.signals import after_task_publish, before_task_publish
from kombu.exceptions import ContentDisallowed, DecodeError, OperationalError
from kombu.pools import producers

from celery_continuations import conf
from celery_continuations.exceptions import StoreError
from celery_continuations.messages.body import Body, written
from celery_continuations.messages.headers import GENERATION
from celery_continuations.messages.routing import destination, queue_names
from celery_continuations.messages.saved import SavedMessage

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Publisher", "pooled_producer", "publish_saved", "publisher"]


class Publisher:
    """Publish saved messages.

    Args:
        app: the app of the tasks.
        connection: an open connection to the app's broker, not shared.

    Attributes:
        producer: a producer on that connection.
    """

    def __init__(self, app: Celery, connection: Any) -> None:
        self._app = app
        self._connection = connection
        self._sent: Counter[str] = Counter()  # messages by queue
        self.producer: Any = app.amqp.Producer(connection.channel(), auto_declare=False)

    def publish(self, text: str, generation: int) -> None:
        """Publish a saved message that continues ``generation``.

        Raises:
            StoreError: when the text is not a message, or the app does not accept the serializer of its body.
            kombu.exceptions.OperationalError: when the broker cannot be reached.
            Exception: when the broker, or Celery, refuses this message.
        """
        with self._errors_of_one():
            _send_saved(self._app, self.producer, text, generation, retry=False)  # the next sweep tries again
            self._sent.update(self._queues_of(text))

    def is_waiting(self, text: str) -> bool:
        """Whether the queue of a saved message has any messages but what was published here: it may be among them."""
        names = self._queues_of(text)
        with self._errors_of_one():
            return any(self._count(name) > self._sent[name] for name in names)

    def _queues_of(self, text: str) -> list[str]:
        return list(queue_names(self._app, SavedMessage.loads(text).route))

    @contextmanager
    def _errors_of_one(self) -> Iterator[None]:
        """Raise OperationalError only for errors that the next message would meet too."""
        try:
            yield
        except OperationalError:
            raise
        except LookupError:
            raise  # Celery does not know the queue. kombu's Redis transport lists KeyError as a connection error.
        except self._connection.channel_errors:
            # The broker refuses this message, and AMQP has closed the channel.
            self.producer = self._app.amqp.Producer(self._connection.channel(), auto_declare=False)
            raise
        except self._connection.connection_errors as exc:
            raise OperationalError(f"{type(exc).__name__}: {exc}") from exc
        except AttributeError as exc:
            if self._connection.connected:
                raise
            # kombu's Redis transport has lost its connection: a channel without one
            raise OperationalError(f"{type(exc).__name__}: {exc}") from exc

    def _count(self, name: str) -> int:
        try:
            with self._connection.channel() as channel:
                return int(channel.queue_declare(queue=name, passive=True).message_count)
        except self._connection.channel_errors:
            return 0  # the queue does not exist


@contextmanager
def publisher(app: Celery) -> Iterator[Publisher]:
    """Open a connection for a :class:`Publisher`; with confirms on AMQP.

    For the worker's main process: its forked children would inherit pooled connections.

    Raises:
        kombu.exceptions.OperationalError: when the broker cannot be reached, now or within the block.
    """
    with app.connection_for_write(transport_options=_confirming(app)) as connection:
        try:
            connection.connect()  # now, so that no task is recovered that cannot be published
            yield Publisher(app, connection)
        except (*connection.connection_errors, *connection.channel_errors) as exc:
            raise OperationalError(f"{type(exc).__name__}: {exc}") from exc


def publish_saved(app: Celery, text: str, generation: int) -> None:
    """Publish a saved message from any process.  Raises as :meth:`Publisher.publish`."""
    with pooled_producer(app) as producer:
        _send_saved(app, producer, text, generation)


def pooled_producer(app: Celery) -> Any:
    """Return a producer from a pool; on AMQP, one that waits for confirms."""
    if conf.driver_type(app) == "amqp":
        return producers[app.connection_for_write(transport_options=_confirming(app))].acquire(block=True)
    return app.producer_pool.acquire(block=True)


def _send_saved(app: Celery, producer: Any, text: str, generation: int, **options: Any) -> None:
    message = SavedMessage.loads(text)
    content_type, encoding = message.content
    body = message.body(app)
    if not body.is_accepted:
        raise StoreError("record", f"its saved message has the content type {content_type!r}, not in accept_content")
    shown: Any = body.data
    if before_task_publish.receivers or after_task_publish.receivers:
        with suppress(ContentDisallowed, DecodeError):  # then no worker of this app runs it
            shown = body.decode()
            producer = _ShownDecoded(producer, body, shown)
    app.amqp.send_task_message(
        producer,
        message.task,
        ({**message.headers, GENERATION: generation}, message.properties, shown, None),
        content_type=content_type,  # so that kombu sends the body unchanged
        content_encoding=encoding,
        **options,
        **message.sending,
        **destination(app, message.route),
    )


class _ShownDecoded:
    """Publish a body as it is saved, although the receivers of Celery's signals see it decoded.

    Args:
        producer: the producer.
        body: the saved body.
        shown: the decoded one; what a receiver has changed in it is published.
    """

    def __init__(self, producer: Any, body: Body, shown: Any) -> None:
        self._producer = producer
        self._body = body
        self._shown = shown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(self, _: Any, **options: Any) -> Any:
        """Publish the saved body."""
        body = self._body
        if self._shown != body.decode() and body.serializer:
            args, kwargs, embed = self._shown
            body = written(args, kwargs, embed, body.serializer)
        return self._producer.publish(body.data, **options)


def _confirming(app: Celery) -> dict[str, Any]:
    options = conf.transport_options(app)
    return {**options, "confirm_publish": True} if conf.driver_type(app) == "amqp" else options
