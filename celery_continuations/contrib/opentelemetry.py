"""Spans of OpenTelemetry: one for each execution of a continuable task, and within it one for each step.

They are made from Celery's signals and ours.  The executions of a task are siblings, each linked to the previous one.
Two headers of the message carry the contexts:

============================  =============================================================
``traceparent``               of the span within which the task was called (W3C)
``continuation_traceparent``  of the last execution that has begun, set when it begins, so that
                              every later publication of the message carries it
============================  =============================================================
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Token
from typing import Any

from celery import signals as celery_signals
from celery.utils.dispatch import Signal

from celery_continuations import conf, signals
from celery_continuations.task import AppTask

try:
    from opentelemetry import context, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as exc:  # pragma: no cover - tested in a subprocess without OpenTelemetry
    raise ImportError("opentelemetry-api is missing; run: pip install 'celery-continuations[opentelemetry]'") from exc

__all__ = ["instrument", "uninstrument"]

#: The header that carries the context of the previous execution.
PREVIOUS = "continuation_traceparent"

# The attribute of a request that holds the spans of its execution.
_ATTRIBUTE = "_continuation_spans"

_w3c = TraceContextTextMapPropagator()
_connected: list[tuple[Signal, Callable[..., Any]]] = []


def instrument(tracer_provider: TracerProvider | None = None) -> None:
    """Make spans from now on, in this process; a second call changes the provider.

    Args:
        tracer_provider: receives the spans; by default the global one.
    """
    uninstrument()
    tracer = trace.get_tracer("celery_continuations", tracer_provider=tracer_provider)
    receivers = _Receivers(tracer)
    pairs: list[tuple[Signal, Callable[..., Any]]] = [
        (celery_signals.before_task_publish, receivers.on_publish),
        (celery_signals.task_prerun, receivers.on_prerun),
        (celery_signals.task_failure, receivers.on_failure),
        (celery_signals.task_postrun, receivers.on_postrun),
        (signals.task_resumed, receivers.on_resumed),
        (signals.task_interrupted, receivers.on_interrupted),
        (signals.step_started, receivers.on_step_started),
        (signals.step_completed, receivers.on_step_ended),
        (signals.step_interrupted, receivers.on_step_ended),
        (signals.step_failed, receivers.on_step_ended),
    ]
    for signal, receiver in pairs:
        signal.connect(receiver, weak=False)
    _connected.extend(pairs)


def uninstrument() -> None:
    """Stop making spans."""
    while _connected:
        signal, receiver = _connected.pop()
        signal.disconnect(receiver)


class _Spans:
    """The open spans of one execution."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self.span = span
        self.step: Span | None = None
        self._tracer = tracer
        self._step_token: Token[Context] | None = None
        self._context = trace.set_span_in_context(span)
        self._token = context.attach(self._context)

    def start_step(self, name: str, attributes: dict[str, Any]) -> None:
        self.step = self._tracer.start_span(name, self._context, attributes=attributes)
        self._step_token = context.attach(trace.set_span_in_context(self.step))

    def end_step(self) -> None:
        if self.step is None:
            return
        self.step.end()
        # A span that the task has opened must stay the current one
        if self._step_token is not None and trace.get_current_span() is self.step:
            context.detach(self._step_token)
        self.step = self._step_token = None

    def end(self) -> None:
        self.end_step()
        self.span.end()
        context.detach(self._token)


class _Receivers:
    """Receivers of the signals."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def on_publish(self, headers: Any = None, **kwargs: Any) -> None:
        """Add the current context to a call, unless an execution is handed over."""
        if headers is not None and PREVIOUS not in headers and "traceparent" not in headers:
            _w3c.inject(headers)

    def on_prerun(self, task_id: str, task: Any, **kwargs: Any) -> None:
        """Begin the span of an execution."""
        if not isinstance(task, AppTask) or task.request.is_eager:
            return
        request = task.request_stack.top
        headers = request.headers or {}
        span = self._tracer.start_span(
            task.name,
            context=self._parent(headers),
            kind=SpanKind.CONSUMER,
            links=_links(headers),
            attributes={"celery.task_id": task_id, "celery.task_name": task.name, "continuation.resumptions": 0},
        )
        carrier: dict[str, str] = {}
        _w3c.inject(carrier, trace.set_span_in_context(span))
        if carrier:
            request.headers = {**headers, PREVIOUS: carrier["traceparent"]}
        setattr(request, _ATTRIBUTE, _Spans(self._tracer, span))

    def _parent(self, headers: dict[str, Any]) -> Context:
        """Return the context that another instrumentation has set, else the caller's."""
        current = context.get_current()
        if trace.get_current_span(current).get_span_context().is_valid:
            return current
        return _w3c.extract(headers)

    def on_failure(self, sender: Any = None, exception: Any = None, **kwargs: Any) -> None:
        """Record the error of a task that fails."""
        spans = _spans_of(sender)
        if spans is not None and isinstance(exception, BaseException):
            _record(spans.span, exception)

    def on_postrun(self, sender: Any = None, state: str | None = None, **kwargs: Any) -> None:
        """End the span of an execution."""
        spans = _spans_of(sender)
        if spans is not None:
            _set(spans.span, state=state)
            spans.end()
            delattr(sender.request_stack.top, _ATTRIBUTE)

    def on_resumed(self, sender: Any, continuation: Any, **kwargs: Any) -> None:
        """Note that an execution is not the first."""
        spans = _spans_of(sender)
        if spans is not None:
            _set(spans.span, resumptions=continuation.resumptions, resumed_reason=continuation.reason)

    def on_interrupted(self, sender: Any, interrupt: Any, error: Exception | None = None, **kwargs: Any) -> None:
        """Note that an execution was interrupted."""
        spans = _spans_of(sender)
        if spans is not None:
            _set(spans.span, reason=interrupt.reason, step=interrupt.step, cursor=interrupt.cursor)
            if error is not None:
                _record(spans.span, error)

    def on_step_started(self, sender: Any, task_id: str, step: Any, **kwargs: Any) -> None:
        """Begin the span of a step."""
        spans = _spans_of(sender)
        if spans is not None:
            spans.end_step()
            spans.start_step(step.name, {"celery.task_id": task_id, "celery.task_name": sender.name})
            assert spans.step is not None
            _set(spans.step, step=step.name, resumed=step.resumed)

    def on_step_ended(self, sender: Any, step: Any, error: Exception | None = None, **kwargs: Any) -> None:
        """End the span of a step that is complete, interrupted or failed."""
        spans = _spans_of(sender)
        if spans is not None and spans.step is not None:
            cursor = step.cursor if conf.setting(sender, "show_cursors") else None
            _set(spans.step, cursor=cursor, advanced=step.advanced)
            if error is not None:
                _record(spans.step, error)
            spans.end_step()


def _spans_of(task: Any) -> _Spans | None:
    return getattr(task.request_stack.top, _ATTRIBUTE, None) if isinstance(task, AppTask) else None


def _links(headers: dict[str, Any]) -> list[Link]:
    previous = trace.get_current_span(_w3c.extract({"traceparent": headers.get(PREVIOUS) or ""})).get_span_context()
    return [Link(previous)] if previous.is_valid else []


def _set(span: Span, **attributes: Any) -> None:
    """Set our attributes, except those that are None, which a span does not accept."""
    for name, value in attributes.items():
        if value is not None:
            known = isinstance(value, (bool, int, float, str))
            span.set_attribute(f"continuation.{name}", value if known else repr(value))


def _record(span: Span, error: BaseException) -> None:
    span.record_exception(error)
    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
