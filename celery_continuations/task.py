"""The base classes of tasks: what their authors use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar, overload

from celery_continuations import celery_internals, children, conf, refusals
from celery_continuations.boundary import BoundaryTask
from celery_continuations.core.continuation import Continuation
from celery_continuations.core.iteration import Iteration
from celery_continuations.core.order import check_name
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Saved
from celery_continuations.core.step import Step
from celery_continuations.core.typevars import P, R_co
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.execution.direct import execution_of
from celery_continuations.sources import opener
from celery_continuations.sources.base import AUTO, Sources
from celery_continuations.transactions import unit_of
from celery_continuations.waits import Waiter, Waits

if TYPE_CHECKING:
    from celery import Signature, group

__all__ = ["AppTask", "ContinuableTask"]

T = TypeVar("T")
V = TypeVar("V")
C = TypeVar("C")
Q = ParamSpec("Q")


class Select(Protocol):
    """A select of SQLAlchemy's."""

    def get_final_froms(self) -> Any: ...


_BLOCK_OPTIONS = ("start", "isolated", "transaction")

# The methods and properties of AppTask that tasks use.
_PUBLIC = (
    "step", "iterate", "wait_for", "sleep", "wait_until", "resume_in", "wait_for_results",
    "checkpoint", "saved", "continuation", "callback_url",
)  # fmt: skip


class AppTask(Waits, BoundaryTask[P, R_co]):
    """A Celery task that may have steps.  For a whole app:

    >>> from celery import Celery
    >>> app = Celery("proj", task_cls="celery_continuations:AppTask")

    A task without steps behaves as without this class, and keeps the app's own delivery settings.  A task claims at its
    first step.
    """

    abstract = True

    # -- for the author of a task

    @overload
    def step(self, name: str, func: Callable[Q, V], /, *args: Q.args, **kwargs: Q.kwargs) -> V: ...
    @overload
    def step(self, name: str, /, *, start: None = None, isolated: bool = False, transaction: Any = None) -> Step: ...
    @overload  # pyright would take ("a", 1) for a cursor that never changes
    def step(
        self, name: str, /, *, start: tuple[T, V], isolated: bool = False, transaction: Any = None
    ) -> Step[tuple[T, V]]: ...
    @overload
    def step(self, name: str, /, *, start: C, isolated: bool = False, transaction: Any = None) -> Step[C]: ...
    def step(self, name: str, func: Callable[..., Any] | None = None, /, *args: Any, **kwargs: Any) -> Any:
        """Run a part of the task once.

        Call form, ``self.step(name, func, *args, **kwargs)``: calls ``func`` and returns its value; once the step is
        complete, returns the remembered value without calling.

        Block form, ``for step in self.step(name, start=None, isolated=False):``: the body runs once, and not at all if
        the step is complete.  With ``transaction=`` each move of the cursor, and the end of the body, is committed
        together with the work before it; see :meth:`iterate`.

        Args:
            name: the name of the step, unique in this task.
            func: what to call; without it this is the block form.
            start: where the cursor starts (block form).
            isolated: run the step in its own execution (block form).
            transaction: see :meth:`iterate` (block form).

        Raises:
            InvalidStepError: when the step is not allowed at this place.
            UnserializableValueError: when the value of ``func`` cannot be saved.

        >>> from celery import Celery
        >>> app = Celery(set_as_current=False)
        >>> @app.task(base=ContinuableTask, bind=True)
        ... def total(self, pages):
        ...     rate = self.step("rate", lambda: 2)
        ...     for step in self.step("count", start=0):
        ...         while step.cursor < pages:
        ...             step.advance()
        ...     return rate * pages
        >>> total(3)
        6
        """
        check_name(name)
        run = self._run(name)
        if func is None:
            return run.declare(Step(run, name, **_block_options(name, args, kwargs)))
        if not callable(func):
            loop = f", to loop over it self.iterate({name!r}, ...)" if hasattr(func, "__iter__") else ""
            raise InvalidStepError(
                f"step {name!r} was given {func!r:.200}, which is not callable; for a cursor write "
                f"start={func!r:.200}{loop}",
                found=name,
            )
        return run.call(name, func, args, kwargs)

    @overload
    def iterate(
        self,
        name: str,
        source: Sources[T],
        *,
        start: Any = None,
        isolated: bool = False,
        batch: None = None,
        total: int | Literal["count"] | None = None,
        on_error: int | None = None,
        transaction: Any = None,
        identity: Callable[[T], Any] | None = AUTO,
    ) -> Iteration[T]: ...
    @overload
    def iterate(
        self,
        name: str,
        source: Sources[T],
        *,
        start: Any = None,
        isolated: bool = False,
        batch: int,
        total: int | Literal["count"] | None = None,
        on_error: int | None = None,
        transaction: Any = None,
        identity: Callable[[T], Any] | None = AUTO,
    ) -> Iteration[list[T]]: ...
    @overload
    def iterate(
        self,
        name: str,
        source: PathLike[str] | Select,
        *,
        start: Any = None,
        isolated: bool = False,
        batch: int | None = None,
        total: int | Literal["count"] | None = None,
        on_error: int | None = None,
        transaction: Any = None,
        identity: Callable[[Any], Any] | None = AUTO,
    ) -> Iteration: ...
    def iterate(
        self,
        name: str,
        source: Any,
        *,
        start: Any = None,
        isolated: bool = False,
        batch: int | None = None,
        total: int | Literal["count"] | None = None,
        on_error: int | None = None,
        transaction: Any = None,
        identity: Callable[[Any], Any] | None = AUTO,
    ) -> Iteration:
        """Loop over ``source``, with a checkpoint after each item.

        Args:
            name: the name of the step.
            source: a sequence, range or iterable; a source; a path (its CSV rows if it ends in ``.csv``, its JSON
                values if it ends in ``.jsonl`` or ``.ndjson``, else its lines); a text file opened for reading; a type
                registered with :func:`sources.register`; or a function that returns one of these, called only if the
                step is not complete.  A source without a key is read by position: a resumption skips the items that
                were done, and compares the last of them with what was saved of it.
            start: where to start; for positions an int.
            isolated: run the step in its own execution.
            batch: yield lists of up to this many items.
            total: number of items, for progress; ``"count"`` counts a queryset or select once.
            on_error: how many items may fail, see :meth:`Iteration.attempt`; they are listed in ``rows.failed``.
            transaction: a SQLAlchemy Session, or the alias of a Django database, of the database that is also
                ``continuation_store``: the body's work in it is committed after each item, with the cursor, so that
                each item takes effect exactly once.  The body must not commit.
            identity: a function that returns what identifies an item, for items read by position that look different
                in each execution; None to compare nothing.

        Returns:
            An iterable, to be used once, with ``cursor``, ``total``, ``resumed`` and ``failed``.

        Raises:
            InvalidStepError: when the step is not allowed at this place, or the source is a set or a string.
            SourceChangedError: when a resumption finds that the source is not what it was.

        >>> from celery import Celery
        >>> app = Celery(set_as_current=False)
        >>> @app.task(base=ContinuableTask, bind=True)
        ... def parse(self, texts):
        ...     rows = self.iterate("parse", texts, on_error=1)
        ...     for text in rows:
        ...         with rows.attempt():
        ...             int(text)
        ...     return [cursor for cursor, error in rows.failed]
        >>> parse(["1", "two", "3"])
        [1]
        """
        check_name(name)
        run = self._run(name)
        unit = unit_of(name, transaction)
        opened = opener(name, source, batch, total, identity)
        return run.declare(Iteration(run, name, opened, start, isolated, on_error, unit))

    @overload
    def wait_for_results(self, name: str, signatures: group, timeout: float | timedelta | None = None) -> list[Any]: ...
    @overload
    def wait_for_results(self, name: str, signatures: Signature[V], timeout: float | timedelta | None = None) -> V: ...
    @overload
    def wait_for_results(
        self, name: str, signatures: Iterable[Signature[V]], timeout: float | timedelta | None = None
    ) -> list[V]: ...
    def wait_for_results(self, name: str, signatures: Any, timeout: float | timedelta | None = None) -> Any:
        """Start other tasks, free the worker, and continue when all of them have ended.

        They are started at least once, and always under the same ids.  They need a result backend, where they store
        their results even if their task ignores them.

        Args:
            name: the name of the step.
            signatures: a signature, a group, or a list of signatures; the same ones in each execution.
            timeout: seconds or a timedelta, from the first call; None to wait forever.

        Returns:
            The result of the signature; of a group or a list, the results in order.

        Raises:
            Exception: the error of a child; of several, that of the first in order.
            ChildError: when a child has ended without a result.
            WaitTimeout: on timeout; the children that have not ended continue.
            StoreError: see :meth:`wait_for`.

        >>> from celery import Celery
        >>> app = Celery(set_as_current=False)
        >>> @app.task
        ... def double(number):
        ...     return 2 * number
        >>> @app.task(base=ContinuableTask, bind=True)
        ... def doubles(self, numbers):
        ...     return sum(self.wait_for_results("doubles", [double.s(one) for one in numbers]))
        >>> doubles([1, 2, 3])
        12
        """
        run, waiter = self._waits(name)
        return children.wait_for_results(run, waiter, name, signatures, self, timeout)

    def checkpoint(self) -> None:
        """Make a checkpoint: the task may stop here, outside or inside a step."""
        self._run("checkpoint").own_checkpoint()

    @property
    def saved(self) -> Saved:
        """A dict kept across executions, for values that several steps need.

        Raises:
            UnserializableValueError: on assigning a value that would not be restored as equal.
        """
        return self._run("saved").snapshot.saved

    def callback_url(self, name: str, expires: float | timedelta | None = None) -> str:
        """Return an address at which an external service delivers what this task waits for.

        Args:
            name: the name of the wait.
            expires: seconds, or a timedelta, from now; by default ``continuation_callback_expires``.

        Raises:
            ImproperlyConfigured: when ``continuation_callback_url`` or ``continuation_callback_secret`` is not set.
            InvalidStepError: when the task has no id, as in a direct call, or ``name`` is not a valid name.
            ValueError: when ``expires`` is not a time above 0.

        >>> from celery import Celery
        >>> app = Celery(broker="memory://", set_as_current=False)
        >>> app.conf.continuation_callback_url = "https://example.com/callbacks"
        >>> app.conf.continuation_callback_secret = "only an example, of 32 characters or more"
        >>> @app.task(base=ContinuableTask, bind=True)
        ... def ask(self):
        ...     return self.callback_url("payment", expires=3600)
        >>> ask.apply().get().startswith("https://example.com/callbacks/")
        True
        """
        from celery_continuations import callbacks  # itsdangerous is an extra

        if self.request.id is None:
            raise InvalidStepError(
                f"callback_url({name!r}) of task {self.name} was used where the task has no id: in a direct call, "
                "outside of it, or in another thread or greenlet",
                found=name,
            )
        started = not self._waits(name)[1].is_direct  # a task that has started has a record
        store = conf.setting(self, "store")
        return callbacks.callback_url(self.app, self.request.id, name, expires, store=store, started=started)

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

    def _waits(self, name: str) -> tuple[Run, Waiter]:
        check_name(name)
        return self._run(name), execution_of(self.request_stack.top).waiter

    def __init_subclass__(cls, **kwargs: Any) -> None:
        app = celery_internals.app_of_unbound(cls)
        if app is not None and issubclass(cls, ContinuableTask):
            refusals.refuse_unbound(cls, app, ContinuableTask)
        super().__init_subclass__(**kwargs)
        refusals.warn_of_overrides(cls, AppTask, _PUBLIC)


class ContinuableTask(AppTask[P, R_co]):
    """A Celery task that stops with its worker and continues on another one.

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


def _block_options(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    unknown = [*map(repr, args), *(key for key in kwargs if key not in _BLOCK_OPTIONS)]
    if unknown:
        raise InvalidStepError(
            f"step {name!r} was given {', '.join(unknown)} but no function; without one it takes start, isolated and "
            "transaction",
            found=name,
        )
    options = {key: value for key, value in kwargs.items() if key != "transaction"}
    return {**options, "unit": unit_of(name, kwargs.get("transaction"))}
