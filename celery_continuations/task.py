"""Where the core meets Celery.  :class:`Interrupt` is caught here, once.

Three methods of every class below :class:`AppTask` are wrapped when the class is made, the
user's own overrides included, because each has a place that must not be lost by an override:

``__call__``  the boundary: it lies outside every override, so that an interruption is handed
              over after a user's own context (an application, a tenant) has been left
``run``       lies inside of ``autoretry_for``, so that a task which has got on resumes before
              that is asked
``on_retry``  Celery calls it when the state RETRY is stored, and only then may the message go out

Nothing of a run is kept on the task, which is one shared instance for each process: it is
kept on the request, of which each thread and greenlet has its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from weakref import WeakSet

from celery import Celery, Task

from celery_continuations import conf
from celery_continuations.core import codec
from celery_continuations.core.run import Continuation, Run, check_name
from celery_continuations.core.snapshot import Saved
from celery_continuations.core.step import Iteration
from celery_continuations.direct import ATTRIBUTE, DirectExecution, execution_of
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.execution import Execution
from celery_continuations.result import ContinuableAsyncResult
from celery_continuations.sources import opener
from celery_continuations.worker.hearing import Hearing

__all__ = ["AppTask", "ContinuableTask"]

T = TypeVar("T")

_prepared: WeakSet[Celery] = WeakSet()


def _wrap(cls: type[Any], name: str, wrapper: Callable[..., Any]) -> None:
    """Lay ``wrapper`` around the method that ``cls`` has, its own or inherited, unless that is done."""
    found = inspect.getattr_static(cls, name)
    function = found.__func__ if isinstance(found, staticmethod) else found
    if found is inspect.getattr_static(Task, name) and name == "run":
        return
    if getattr(function, "_continuation_wrapper", None) is wrapper:
        return

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(self, found.__get__(self, type(self)), args, kwargs)

    method._continuation_wrapper = wrapper  # type: ignore[attr-defined]
    setattr(cls, name, method)


def _boundary(task: Any, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Around ``__call__``: where an interruption becomes a hand-over."""
    request = task.request_stack.top
    if request is None or request.called_directly or execution_of(request) is not None:
        return call(*args, **kwargs)
    if request.is_eager:
        DirectExecution(request)
        return call(*args, **kwargs)
    execution = Execution(task, request)
    try:
        if task.claims_at_start or execution.resumed:
            execution.begin()
            if execution.finished_value is not None:
                return codec.loads(execution.finished_value, "the return value")
        value = call(*args, **kwargs)
        execution.returned()
        execution.finish(value)
    except BaseException as error:
        instead = execution.left_by(error)
        if instead is error:
            raise
        raise instead from instead.__cause__
    finally:
        execution.close()
    return value


def _body(task: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Around ``run``: the task's own code."""
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
        execution = DirectExecution(request)
    execution.in_body = True
    try:
        value = run(*args, **kwargs)
    except Exception as error:
        execution.failed(error)
        raise
    finally:
        execution.in_body = False
    if isinstance(execution, DirectExecution):
        execution.returned()
    return value


def _after_retry(task: Any, on_retry: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Around ``on_retry``: the state is stored, the message may go out."""
    execution = execution_of(task.request_stack.top)
    if isinstance(execution, Execution):
        execution.publish()
    return on_retry(*args, **kwargs)


class AppTask(Task):  # type: ignore[misc]
    """A Celery task that may have steps.  For a whole app:

    >>> from celery import Celery
    >>> app = Celery("proj", task_cls="celery_continuations:AppTask")

    A task that uses no step is as it would be without this class, and keeps the app's own
    delivery settings; it claims at its first step.
    """

    abstract = True
    Request = "celery_continuations.worker.receiving:Request"
    Strategy = "celery_continuations.worker.receiving:strategy"

    #: Claim when the task starts, not at its first step.
    claims_at_start = False

    # -- what a task's author uses

    def step(self, name: str, func: Callable[..., Any] | None = None, /, *args: Any, **kwargs: Any) -> Any:
        """Run a part of the task once.

        Call form, ``self.step(name, func, *args, **kwargs)``: calls ``func`` and returns its
        value; once the step is complete, returns the remembered value without calling.

        Block form, ``for step in self.step(name, start=None, isolated=False):``: the body
        runs once, and not at all when the step is complete.

        Args:
            name: of the step, a name of its own in this task.
            func: what to call; without it this is the block form.
            start: where the cursor starts (block form).
            isolated: run the step in an execution of its own (block form).

        Raises:
            InvalidStepError: when the step must not come here.
            UnserializableValueError: when the value of ``func`` cannot be saved.

        >>> from celery import Celery
        >>> app = Celery(set_as_current=False)
        >>> @app.task(base=ContinuableTask, bind=True)
        ... def total(self, pages):
        ...     rate = self.step("rate", lambda: 2)
        ...     for step in self.step("count", start=0):
        ...         while step.cursor < pages:
        ...             step.advance()
        ...     return rate * step.cursor
        >>> total(3)
        6
        """
        check_name(name)
        run = self._run(name)
        if func is None:
            return run.step(name, None, (), {}, **_block_options(name, args, kwargs))
        if not callable(func):
            raise InvalidStepError(
                f"step {name!r} was given {func!r}, which is not callable; for a cursor write start={func!r}",
                found=name,
            )
        return run.step(name, func, args, kwargs)

    def iterate(
        self,
        name: str,
        source: Iterable[T] | Callable[[], Iterable[T]] | Any,
        *,
        start: Any = None,
        isolated: bool = False,
        batch: int | None = None,
        total: int | None = None,
    ) -> Iteration:
        """Loop over ``source``, with a checkpoint after each item.

        Args:
            name: of the step.
            source: a sequence, range, iterable or source, or a function that returns one and
                is called only if the step is still to be done.
            start: where to start; for positions an int.
            isolated: run the step in an execution of its own.
            batch: yield lists of up to so many items.
            total: number of items, for progress, where ``len(source)`` does not tell.

        Returns:
            An iterable, to be used once, with ``cursor``, ``total`` and ``resumed``.

        Raises:
            InvalidStepError: when the step must not come here, or the source is a set or a string.

        >>> from celery import Celery
        >>> app = Celery(set_as_current=False)
        >>> @app.task(base=ContinuableTask, bind=True)
        ... def sizes(self):
        ...     return [len(rows) for rows in self.iterate("import", range(10), batch=4)]
        >>> sizes()
        [4, 4, 2]
        """
        check_name(name)
        return self._run(name).iterate(name, opener(name, source, batch, total), start=start, isolated=isolated)

    def checkpoint(self) -> None:
        """A place where the task may stop, outside or inside a step."""
        self._run("checkpoint").checkpoint()

    @property
    def saved(self) -> Saved:
        """A dict kept across executions, for what several steps need.

        Raises:
            UnserializableValueError: at assignment, for a value that would not come back equal.
        """
        return self._run("saved").snapshot.saved

    @property
    def continuation(self) -> Continuation:
        """The run's view of itself: completed, current, resumptions, reason, key, errors."""
        return Continuation(self._run("continuation"))

    def _run(self, what: str) -> Run:
        execution = execution_of(self.request_stack.top)
        if execution is None:
            raise InvalidStepError(
                f"{what!r} of task {self.name} was used where the task is not running: outside of it, "
                "or in another thread or greenlet",
                found=what,
            )
        run: Run = execution.begin()
        return run

    # -- what Celery uses

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the task directly: straight through, with no worker, no store, no interruption."""
        request = self.request_stack.top
        execution = execution_of(request)
        if execution is not None and execution.in_body:
            # The task calls itself. Celery would give the call this same request, or a copy of it.
            self.push_request(args=args, kwargs=kwargs, called_directly=True, **{ATTRIBUTE: None})
            try:
                return self.run(*args, **kwargs)
            finally:
                self.pop_request()
        if request is None or request.called_directly:
            return super().__call__(*args, **kwargs)
        following = super().__call__
        if following.__func__ is not Task.__call__:
            return following(*args, **kwargs)
        return self.run(*args, **kwargs)  # Task's own would push a request without the message's data

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _wrap(cls, "__call__", _boundary)
        _wrap(cls, "run", _body)
        _wrap(cls, "on_retry", _after_retry)

    @classmethod
    def bind(cls, app: Celery) -> Celery:
        """As of Task; checks the settings, and lets the app's workers hear when they are stopped."""
        bound: Celery = super().bind(app)
        if app not in _prepared:
            conf.validate(app)
            app.steps["worker"].add(Hearing)
            _prepared.add(app)
        conf.validate(app, cls)
        return bound

    def AsyncResult(self, task_id: str, **kwargs: Any) -> ContinuableAsyncResult:  # noqa: N802
        """As of Task; the result also tells the progress."""
        return ContinuableAsyncResult(
            task_id, backend=self.backend, app=self.app, store=conf.setting(self, "store"), **kwargs
        )

    def signature_from_request(self, *args: Any, **kwargs: Any) -> Any:
        """As of Task; for ``self.retry()`` in a run, what keeps the run's progress."""
        signature = super().signature_from_request(*args, **kwargs)
        execution = execution_of(self.request_stack.top)
        if not isinstance(execution, Execution) or execution.run is None:
            return signature
        return _RetryMessage(execution, signature, *args, **kwargs)

    def replace(self, sig: Any) -> Any:
        """As of Task; the task that comes in place of this one starts afresh."""
        execution = execution_of(self.request_stack.top)
        if isinstance(execution, Execution):
            execution.forget()
        return super().replace(sig)


class ContinuableTask(AppTask):
    """A Celery task that stops when its worker does, and goes on elsewhere.

    >>> from celery import Celery
    >>> app = Celery(set_as_current=False)
    >>> @app.task(base=ContinuableTask, bind=True)
    ... def import_rows(self, rows):
    ...     for row in self.iterate("import", rows):
    ...         print(row)
    >>> import_rows(["a", "b"])
    a
    b
    """

    abstract = True
    acks_late = True
    reject_on_worker_lost = True
    claims_at_start = True


class _RetryMessage:
    """Stands in for the signature that ``Task.retry`` would send: the boundary publishes instead."""

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
        """Called by ``Task.retry`` in place of sending."""
        self._execution.retry_options = {k: v for k, v in self._options.items() if v is not None}


def _block_options(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    unknown = [*map(repr, args), *(key for key in kwargs if key not in ("start", "isolated"))]
    if unknown:
        raise InvalidStepError(
            f"step {name!r} was given {', '.join(unknown)} but no function; without one it takes start and isolated",
            found=name,
        )
    return kwargs
