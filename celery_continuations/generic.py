"""Celery's Task as a generic class: of its parameters and of what it returns.

At run time it is Celery's own class, which cannot be subscripted before Celery 5.7.  The rest is for type checkers,
with or without types for Celery: the parameters of a call, the options of a message, and results of this package's
class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Task

from celery_continuations.core.typevars import P, R_co

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from typing import Generic

    from celery import Signature
    from kombu import Exchange, Producer, Queue

    from celery_continuations.result import ContinuableAsyncResult

__all__ = ["GenericTask"]

if TYPE_CHECKING:

    class GenericTask(Task[P, R_co], Generic[P, R_co]):
        """See :class:`celery.Task`."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
            """Call the task directly."""

        def delay(self, *args: P.args, **kwargs: P.kwargs) -> ContinuableAsyncResult[R_co]:
            """Send the task."""

        def apply_async(
            self,
            args: tuple[Any, ...] | None = None,
            kwargs: dict[str, Any] | None = None,
            task_id: str | None = None,
            producer: Producer | None = None,
            link: Signature[Any] | list[Signature[Any]] | None = None,
            link_error: Signature[Any] | list[Signature[Any]] | None = None,
            shadow: str | None = None,
            *,
            countdown: float = ...,
            eta: datetime = ...,
            expires: float | datetime = ...,
            retry: bool = ...,
            retry_policy: Mapping[str, Any] = ...,
            queue: str | Queue = ...,
            exchange: str | Exchange = ...,
            routing_key: str = ...,
            priority: int = ...,
            serializer: str = ...,
            compression: str = ...,
            add_to_parent: bool = ...,
            publisher: Producer = ...,
            headers: dict[str, Any] = ...,
            ignore_result: bool = ...,
            time_limit: int = ...,
            soft_time_limit: int = ...,
        ) -> ContinuableAsyncResult[R_co]:
            """Send the task, with options of its message."""

else:

    class GenericTask(Task):
        """See :class:`celery.Task`."""

        abstract = True

        def __class_getitem__(cls, types):
            return cls
