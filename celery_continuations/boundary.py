"""The boundary between the core and Celery.  Only here :class:`Interrupt` is caught.

Three methods of every subclass of :class:`BoundaryTask`, including users' overrides, are wrapped when the class is
made, so that an override cannot move them:

``__call__``
    the boundary: it is outside every override, so that the hand-over happens after a user's own context (an
    application, a tenant) has been left
``run``
    is inside ``autoretry_for``, so that a task that has made progress resumes before Celery retries it
``on_retry``
    is called by Celery once the state RETRY is stored; only then may the message be published

The state of a run is not kept on the task, which is one shared instance in each process, but on the request, of which
each thread and greenlet has its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from celery import Celery, Task
from celery import signals as celery_signals
from celery.exceptions import Ignore

from celery_continuations import conf, refusals, saved_results
from celery_continuations.children import tell_parent
from celery_continuations.core import codec
from celery_continuations.core.typevars import P, R_co
from celery_continuations.execution.direct import (
    ATTRIBUTE,
    DirectExecution,
    execution_of,
    rehearsed,
    rehearsed_arguments,
)
from celery_continuations.execution.execution import Execution
from celery_continuations.execution.soft_limit import soft_limit
from celery_continuations.generic import GenericTask
from celery_continuations.result import ContinuableAsyncResult
from celery_continuations.worker.bootstep import Hearing

__all__ = ["BoundaryTask", "RetryMessage"]

_prepared: WeakSet[Celery] = WeakSet()


def _wrap(cls: type[Any], name: str, wrapper: Callable[..., Any]) -> None:
    """Wrap the method of ``cls``, its own or inherited, in ``wrapper``, unless that is done already."""
    found = inspect.getattr_static(cls, name)
    function = found.__func__ if isinstance(found, staticmethod) else found
    if found is inspect.getattr_static(Task, name) and name == "run":
        return
    if getattr(function, "_continuation_wrapper", None) is wrapper:
        return
    if name == "run":
        refusals.refuse_lazy_function(function)

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(self, found.__get__(self, type(self)), args, kwargs)

    method._continuation_wrapper = wrapper  # type: ignore[attr-defined]
    setattr(cls, name, method)


def _boundary(task: Any, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Wrap ``__call__``: turn an interruption into a hand-over."""
    request = task.request_stack.top
    if request is not None and execution_of(request) is not None:
        return call(*args, **kwargs)
    if request is None or request.called_directly:
        return _checked(task, call(*args, **kwargs))
    execution = rehearsed(task, request) if request.is_eager else Execution(task, request)
    if execution is None:
        DirectExecution(task, request)
        return _checked(task, call(*args, **kwargs))
    if not request.is_eager:
        soft_limit.hold()
    try:
        if task.claims_at_start or execution.resumed:
            execution.begin()
            if execution.returned_value is not None:
                return codec.loads(execution.returned_value, "the return value")
        value = call(*args, **kwargs)
        execution.returned()
        execution.finish(_checked(task, value))
    except BaseException as error:
        instead = execution.left_by(error)
        if instead is error:
            raise
        raise instead from instead.__cause__
    finally:
        execution.close()
        if not execution.has_claimed:
            soft_limit.let()
    return value


def _checked(task: Any, value: Any) -> Any:
    """Return ``value``, or refuse it if it shows that the task's body never ran."""
    if task.claims_at_start:
        refusals.refuse_unrun(task, value)
    return value


def _body(task: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Wrap ``run``: the task's own code."""
    request = task.request_stack.top
    if request is None:
        task.push_request(args=args, kwargs=kwargs)
        try:
            return _body(task, run, args, kwargs)
        finally:
            task.pop_request()
    execution = execution_of(request)
    if execution is not None and execution.in_body:
        return run(*args, **kwargs)
    if execution is None:
        execution = DirectExecution(task, request)
    execution.in_body = True
    execution.called_with = (args, kwargs)
    try:
        value = execution.run_body(run, args, kwargs)
    except Exception as error:
        execution.failed(error)
        raise
    finally:
        execution.in_body = False
        execution.called_with = ((), {})
    if isinstance(execution, DirectExecution):
        execution.returned()
    return value


def _after_retry(task: Any, on_retry: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Wrap ``on_retry``: the state is stored, so the message may be published."""
    execution = execution_of(task.request_stack.top)
    if isinstance(execution, Execution):
        execution.publish()
    return on_retry(*args, **kwargs)


class BoundaryTask(GenericTask[P, R_co]):
    """The part of a task that Celery calls."""

    abstract = True
    Request = "celery_continuations.worker.requests:Request"
    Strategy = "celery_continuations.worker.requests:strategy"

    #: Claim when the task starts, not at its first step.
    claims_at_start = False

    #: Store the state STARTED once the task is claimed.  Celery would store it for a message that is refused, too.
    stores_started = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the task directly: without worker, store and interruptions."""
        request = self.request_stack.top
        execution = execution_of(request)
        if execution is not None and execution.in_body:
            # The task calls itself. Celery would use this same request for the call, or a copy of it.
            push_request: Any = self.push_request  # celery-types gives it the task's own parameters
            push_request(args=args, kwargs=kwargs, called_directly=True, **{ATTRIBUTE: None})
            try:
                return self.run(*args, **kwargs)
            finally:
                self.pop_request()
        if request is None or request.called_directly:
            return super().__call__(*args, **kwargs)
        following: Any = super().__call__
        if following.__func__ is not Task.__call__:
            value: R_co = following(*args, **kwargs)
            return value
        return self.run(*args, **kwargs)  # Task.__call__ would push a request without the message's data

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _wrap(cls, "__call__", _boundary)
        _wrap(cls, "run", _body)
        _wrap(cls, "on_retry", _after_retry)

    @classmethod
    def bind(cls, app: Celery) -> Celery:
        """Bind the class to the app, check its settings, and add the bootstep to the app's workers."""
        bound: Celery = super().bind(app)
        if cls.claims_at_start and cls.track_started:
            cls.stores_started, cls.track_started = True, False
        if app not in _prepared:
            conf.validate(app)
            saved_results.allow()
            app.steps["worker"].add(Hearing)
            celery_signals.task_postrun.connect(tell_parent, dispatch_uid="celery_continuations.parents")
            _prepared.add(app)
        conf.validate(app, cls)
        return bound

    def AsyncResult(self, task_id: str, **kwargs: Any) -> ContinuableAsyncResult[R_co]:  # noqa: N802
        """Return a result that also reports the progress."""
        return ContinuableAsyncResult(
            task_id, backend=self.backend, app=self.app, store=conf.setting(self, "store"), **kwargs
        )

    def apply(
        self,
        args: Any = None,
        kwargs: Any = None,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        """Apply the task in this process; within a rehearsal, with the arguments as a message carries them."""
        args, kwargs = rehearsed_arguments(self, task_id, args, kwargs)
        return super().apply(args, kwargs, link, link_error, task_id, *rest, **options)

    def signature_from_request(self, *args: Any, **kwargs: Any) -> Any:
        """Return a signature that keeps the run's progress in ``self.retry()``."""
        signature = super().signature_from_request(*args, **kwargs)
        execution = execution_of(self.request_stack.top)
        if not isinstance(execution, Execution) or execution.run is None:
            return signature
        return RetryMessage(execution, signature, *args, **kwargs)

    def on_cancel(self, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Release what the task holds: it has ended in the state REVOKED.  Override it; by default it does nothing.

        Celery calls neither ``on_failure`` nor ``after_return`` then.  It is called once: in the worker that ran the
        task, or in the process that cancelled a task that was not running.  Its errors are logged.

        Args:
            task_id: the task's id.
            args: the task's positional arguments.
            kwargs: its keyword arguments.
        """

    def replace(self, sig: Any) -> Any:
        """Replace this task; the new one starts without its progress."""
        execution = execution_of(self.request_stack.top)
        if not isinstance(execution, Execution):
            return super().replace(sig)
        execution.refuse_if_changed()
        soft_limit.hold()
        try:
            execution.forget()
            return super().replace(sig)
        except Ignore:
            raise  # the other task is out: this one has ended
        except BaseException:
            soft_limit.let()
            raise


class RetryMessage:
    """Replace the signature that ``Task.retry`` would send: the boundary publishes instead."""

    def __init__(
        self,
        execution: Execution,
        signature: Any,
        request: Any = None,
        args: Any = None,
        kwargs: Any = None,
        queue: str | None = None,
        **options: Any,
    ) -> None:
        self.args, self.kwargs = signature.args, signature.kwargs
        self._execution = execution
        self._options = {**options, "args": args, "kwargs": kwargs, "queue": queue}

    def apply_async(self) -> None:
        """Keep the options; ``Task.retry`` calls this to send."""
        self._execution.retry_options = {k: v for k, v in self._options.items() if v is not None}
