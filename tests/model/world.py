"""One history: workers, executions and sweeps, cut off at the chosen places.

Each execution, sweep and handler of a lost process runs in a greenlet of its own, and yields control after every
call that leaves the process.  The world then chooses: continue, or apply one of the remaining faults.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from billiard.exceptions import Terminated
from billiard.pool import MaybeEncodingError
from celery.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError
from celery.worker import state as celery_state
from greenlet import getcurrent, greenlet

from celery_continuations.process import stop_flag as flags
from celery_continuations.stores import Fence, Record, Status
from celery_continuations.stores.base import NOT_CLAIMABLE
from celery_continuations.stores.memory import MemoryStore
from celery_continuations.worker import maintenance
from celery_continuations.worker.bootstep import Hearing
from celery_continuations.worker.maintenance import Maintenance
from celery_continuations.worker.requests import Request
from tests.model.clients import KIND, TASK_ID, Clients, Process
from tests.model.promises import FINAL, FINISHED, Promises, Violation
from tests.model.stand_ins import Message, Now, PlainInfo, SimFlag, told

if TYPE_CHECKING:
    from tests.model.scenarios import Scenario

T = TypeVar("T")

# Longer than a lease and than the time after which a message is overdue.
_WHILE = 11.0

# Longer than any tombstone is kept.
_LONG = 3 * 86400.0

# Enough for every history; stops one that would never end.
_ROUNDS = 60
_CALLS = 2000


class Killed(BaseException):
    """The process has ended and does nothing more."""


class Met(Exception):
    """The history has reached a place from which everything has been tried."""


class Budget(NamedTuple):
    """The maximum number of faults in a history, by kind and in total."""

    crashes: int = 0
    freezes: int = 0
    duplicates: int = 0
    errors: int = 0
    total: int = 99
    switches: int = 0  # not a fault: suspends a client between two of its calls

    def has(self, kind: str) -> bool:
        return self.total > 0 and getattr(self, kind) > 0

    def less(self, kind: str) -> Budget:
        return self._replace(**{kind: getattr(self, kind) - 1, "total": self.total - 1})

    def covers(self, other: Budget) -> bool:
        return all(mine >= its for mine, its in zip(self, other, strict=True))


class Worker:
    """A worker's main process."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.flag = SimFlag(name)
        self.is_crashed = self.is_frozen = self.has_ended = False
        self.was_frozen = False
        self.lapsed = False  # its lease has expired at some time
        self.lost_children: set[str] = set()
        self.unacked: list[Message] = []
        flags._by_hostname[name] = flags._by_path[name] = self.flag
        self.maintenance = Maintenance(world.app, self.flag, list)
        (self._maintained,) = self.maintenance._stores
        self.renew()
        self._maintained.trusts_leases_at = 0.0  # it has been running for a while
        self._maintained.clock._unseen_until = 0.0

    def renew(self) -> None:
        self.maintenance._renew(self._maintained)

    def sweep(self) -> None:
        self.maintenance._sweep(self._maintained)

    def end(self) -> None:
        self.has_ended = True
        self.maintenance.stop()

    @property
    def is_up(self) -> bool:
        return not (self.is_crashed or self.is_frozen or self.has_ended)

    @property
    def is_stopping(self) -> bool:
        return bool(self.flag.level)

    def told(self, text: str, unacked: str) -> str:
        """Return the part of its state that the future depends on."""
        trusts_leases_in = max(0.0, round(self._maintained.trusts_leases_at - Now.world.clock, 3))
        children = [child for child in sorted(self.lost_children) if f"{self.name}/{child}/" in text]
        return (
            f"{self.name} {self.is_crashed:d}{self.is_frozen:d}{self.has_ended:d}{self.lapsed:d}{self.was_frozen:d} "
            f"{self.flag.level} {children} {unacked} "
            f"{trusts_leases_in} {self._maintained.unavailable:d} {self._maintained.sweeper._decided} "
            f"{self._clock_told()}\n"
        )

    def _clock_told(self) -> str:
        clock, now = self._maintained.clock, Now.world.clock
        times = {"quiet": clock._quiet_until, "unseen": clock._unseen_until, **clock._until}
        return str([(name, round(until - now, 3)) for name, until in sorted(times.items()) if until > now])


class Actor:
    """A running actor: an execution, a sweep, the handler of a lost process, or a client."""

    def __init__(self, world: World, kind: str, worker: Worker | Process, number: int, run: Callable[[], None]) -> None:
        self.kind = kind
        self.worker = worker
        self.number = number
        self.child = f"c{number}"
        self.errand = ""
        self.in_child = False
        self.log: list[str] = []
        self.is_dead = False
        self.request: Any = None
        self.message: Message | None = None
        self.watch: Any = None
        self.ends: Actor | None = None  # the execution that this main process ends
        self.store_fault = ""
        self.fate: Callable[[Actor], None] | None = None
        self.owner: str | None = None
        self.knows: frozenset[str] = frozenset()
        self.knows_final = False
        self.stale_effects = 0
        self.effects = 0
        self.has_dispatched = self.has_stored = self.is_refused = False
        self.greenlet = greenlet(run, parent=world.hub)

    @property
    def name(self) -> str:
        return f"{self.kind} {self.number} of {self.worker.name}"

    @property
    def is_up(self) -> bool:
        return not self.is_dead and self.worker.is_up

    @property
    def is_at_work(self) -> bool:
        return not (self.is_dead or self.greenlet.dead or self.worker.lapsed)

    def saved(self, text: str, done: frozenset[str]) -> None:
        """Forget the path to this point, because the progress is saved."""
        self.log[:] = [f"{text} {self.effects > 0}"]
        self.knows = done

    def told(self, known: Fence | None) -> str:
        """Return its knowledge: its input and the answers that it has received."""
        message = self.message.told_to(known) if self.message and self.owner is None else ""
        return (
            f"{self.kind} {self.errand} c{self.number} {self.worker.name} {self.in_child:d} {message} "
            f"{self.store_fault} {self.owner} {self.stale_effects}{self.has_dispatched:d}{self.has_stored:d}"
            f"{self.is_refused:d}{self.knows_final:d} {sorted(self.knows)} {self.log}"
        )


class World:
    """One history.

    Args:
        scenario: which task, broker and result backend.
        budget: how many faults.
        choose: given the names of the options, and what the future depends on, returns an index.
    """

    stores = True

    def __init__(self, scenario: Scenario, budget: Budget, choose: Callable[[list[str], World], int]) -> None:
        Now.world = self
        self.scenario = scenario
        self.app = scenario.app
        self.hub = getcurrent()
        self.clock = 1_000_000.0
        self.memory = MemoryStore(lambda: self.clock)
        self.promises = Promises(self)
        self.clients = Clients(self, scenario.errands)
        self.violation: Violation | None = None
        self.history: list[str] = []
        self.actor: Actor | None = None
        self.owners: dict[str, Actor] = {}
        self.workers: list[Worker] = []
        self.queue: list[Message] = []
        self.held: list[Message] = []  # by dead workers, until the broker notices
        self.sent: dict[int, Message] = {}  # by generation: messages that may be delivered again
        self.stack: list[Actor] = []
        self.frozen: list[Actor] = []
        self.budget = budget
        self.children: set[str] = set()  # children that were started
        self.results: dict[str, Any] = {}  # results of children
        self.losses = 0
        self.errors = 0
        self.may_lose_fresh = False
        self.has_written = False
        self.is_revoked = False
        self.has_frozen = False
        self._choose = choose
        self._calls = 0
        self._actors = 0
        self._late = False

    # -- what actors call

    @property
    def acting(self) -> Actor:
        assert self.actor is not None
        return self.actor

    def io(self, label: str, act: Callable[[], T]) -> T:
        """Perform a call that leaves the process, and let the world choose what comes next."""
        actor = self.actor
        if actor is None:
            return act()  # the world itself
        if actor.is_dead:
            raise Killed
        try:
            result = act()
        except Exception as exc:
            self._switch(actor, f"{label} raised {exc}")
            raise
        self._switch(actor, f"{label}: {told(result)}")
        return result

    def _switch(self, actor: Actor, entry: str) -> None:
        actor.log.append(entry)
        self.history.append(f"{actor.name}: {entry}")
        self.hub.switch()
        if actor.is_dead:
            raise Killed

    def written(self, old: Record | None, new: Record, text: str | None) -> None:
        if self.actor is not None:
            self.promises.written(self.actor, old, new, text)
            self.clients.wrote(self.actor, new)

    def retire(self, worker: str) -> None:
        self.has_written = True
        self.memory.retire(worker)

    def publish(self, message: Message) -> None:
        self.has_written = True
        if message.headers["task"] == self.scenario.task.name:
            self.promises.published += 1
            self.sent[message.generation] = message
            self.queue.append(message)
        elif message.headers["task"] == self.scenario.linked.name:
            self.promises.link(self.acting)
        else:
            self.children.add(message.headers["id"])

    def record(self) -> Record | None:
        return self.memory.read(TASK_ID)

    def body(self) -> str:
        return self.promises.body(self.acting)

    def effect(self, name: str) -> str:
        """Note an effect of the body."""
        self.has_written = True
        return self.io(f"do {name}", lambda: self.promises.effect(self.acting, name))

    def end_child(self, child: str, result: Any) -> None:
        """Store the result of a child."""

        def act() -> None:
            self.has_written = True
            self.results[child] = result
            self.clients.accepted.add(self.acting.errand)

        self.io(f"store result of {child}", act)

    def stop(self) -> None:
        """Stop the worker of this execution, so that its tasks stop at their next checkpoint."""
        actor = self.acting
        actor.worker.flag.raise_to(flags.STOPPING)
        actor.worker.renew()
        actor.watch.check()
        self.history.append(f"** {actor.worker.name} stops")

    def die(self) -> None:
        """End the process of this execution from within."""
        self.acting.fate = self._lose_child
        self.io("die", lambda: None)

    def fall(self) -> None:
        """End the worker of this execution from within the execution."""
        self.acting.fate = lambda actor: self._end_worker(actor.worker)
        self.io("fall", lambda: None)

    def lose_record(self) -> None:
        """Empty the store: none of this task's progress is known any more."""
        self.memory._records.clear()
        self.promises.forget()

    def is_gone(self, name: str) -> bool:
        """Return whether an execution's process has ended, if the asking worker can prove it."""
        known, _, rest = name.partition("/")
        worker = next((one for one in self.workers if one.name == known), None)
        asking = self.acting.worker
        if worker is None or not (asking is worker or self.scenario.is_provable):
            return False
        return worker.is_crashed or worker.has_ended or rest.partition("/")[0] in worker.lost_children

    def new_owner(self, worker: str) -> str:
        """Return the owner of a new execution, with the names of the simulated child and execution."""
        return f"{worker}/{self.acting.child}/e{self.acting.number}"

    def is_at_work(self, task_id: str) -> bool:
        """Stand in for :mod:`celery_continuations.worker.maintenance`, which knows one worker per process."""
        received = celery_state.reserved_requests
        return any(one.id == task_id and one.hostname == self.acting.worker.name for one in received)

    # -- the schedule

    def run(self) -> None:
        """Run the history to its end.

        Raises:
            Violation: when a promise was broken.
            Met: when the chooser knows the place.
        """
        celery_state.reset_state()
        try:
            self._spare = self._new_worker()
            self.queue.append(self.scenario.first.copy(redelivered=False))
            self.sent[0] = self.scenario.first
            for _ in range(_ROUNDS):
                while self.stack:
                    self._step()
                if not self._idle():
                    break
            else:
                self.promises.violated(1, "it goes round forever")
            self.promises.at_end()
            self._check()
        finally:
            self._clear()

    def _step(self) -> None:
        actor = self.stack[-1]
        self._calls += 1
        if self._calls > _CALLS:
            self.promises.violated(1, "it goes round forever")
        self.actor = actor
        self.has_written = False
        actor.greenlet.switch()
        self.actor = None
        self._check()
        if actor.fate is not None:
            fate, actor.fate = actor.fate, None
            fate(actor)
        elif actor.greenlet.dead:
            self.stack.remove(actor)
            if isinstance(actor.worker, Worker):
                self._let_go(actor.worker)
        else:
            self._fault(actor)

    def _check(self) -> None:
        if self.violation is not None:
            raise self.violation

    def _fault(self, actor: Actor) -> None:
        budget = self.budget
        options: list[tuple[str, Callable[[], None]]] = [("go on", lambda: None)]
        if self.frozen:
            options.append(("thaw", self._thaw))
        if self.held:
            options.append(("give back", self._give_back))
        if actor.kind == KIND:
            options += self.clients.own_options(actor)
        else:
            options += [*self.clients.options(), *self._worker_faults(actor)]
        if self.scenario.is_revocable and actor.in_child and not self.is_revoked:
            options.append(("revoke", lambda: self._revoke(actor)))
        if self.scenario.is_limited and actor.in_child and self.promises.known and not self.is_revoked:
            options.append(("time limit", lambda: self._limit(actor)))
        if budget.has("duplicates"):
            options += [(f"duplicate {m}", lambda m=m: self._duplicate(m)) for m in self._to_duplicate()]  # type: ignore[misc]
        if budget.has("errors") and not actor.store_fault:
            options += [
                (f"store {fault}", lambda f=fault: self._store_fault(actor, f)) for fault in self.scenario.store_faults
            ]  # type: ignore[misc]
        self._take(options)

    def _worker_faults(self, actor: Actor) -> list[tuple[str, Callable[[], None]]]:
        options: list[tuple[str, Callable[[], None]]] = []
        if self.budget.has("crashes") and self.has_written:  # a crash after a read equals a crash before it
            if actor.in_child:
                options.append(("crash child", lambda: self._crash_child(actor)))
            options.append(("crash worker", lambda: self._crash_worker(actor.worker)))
        if self.budget.has("freezes") and not actor.worker.lapsed:
            options.append(("freeze", lambda: self._freeze(actor)))
        return options

    def _take(self, options: list[tuple[str, Callable[[], None]]]) -> None:
        name, act = options[self._choose([name for name, _ in options], self)]
        if len(options) > 1 and name != "go on":
            self.history.append(f"** {name}")
        act()

    def _idle(self) -> bool:
        """While idle, deliver, sweep or let time pass; return False when there is nothing left to do."""
        for worker in self.workers:
            if worker.is_up and worker.is_stopping:
                worker.end()
        record = self.record()
        over = self.promises.state in FINAL and (record is None or record.fence.status in FINISHED)
        outside = self.clients.options()
        if self.queue:
            options = [("deliver", self._deliver)]
            if self._is_to_be_swept(record):
                options.append(("sweep", self._pass_time_and_sweep))
            self._take(options + outside)
        elif outside and not over:
            wait = [("time passes", lambda: self._wait(record))] if self._may_wait(record) else []
            self._take(wait + outside)
        elif not over:
            return self._wait(record)
        elif self._has_dead_lease():
            self._pass_time_and_sweep()
        elif outside:
            self._take(outside)
        elif self.frozen:
            self._thaw()
        elif self.held:
            self._give_back()
        elif self.budget.has("duplicates") and not self._late and any(self.sent):
            self._late = True
            self._take([("go on", lambda: None), ("a duplicate after the tombstone", self._late_duplicate)])
        else:
            return False
        return True

    def _may_wait(self, record: Record | None) -> bool:
        """Whether time alone may change something."""
        if self.frozen or self.held:
            return True
        if self.scenario.is_prompt:
            return False
        return record is not None and (record.due is not None or bool(record.fence.worker))

    def _wait(self, record: Record | None) -> bool:
        """Let time pass; return False if that would change nothing."""
        if self._stuck(record):
            return False
        self._pass_time_and_sweep()
        return True

    def _is_to_be_swept(self, record: Record | None) -> bool:
        """Whether a sweep would change the record: its owner is dead, or its message has not been checked yet."""
        if record is None or record.fence.status in NOT_CLAIMABLE:
            return record is not None and record.fence.status == Status.WAITING and record.due is not None
        if record.fence.status == Status.QUEUED:
            return not record.fence.republished
        return not record.fence.owner or not self.owners[record.fence.owner].is_up

    def _has_dead_lease(self) -> bool:
        up = {worker.name for worker in self.workers if worker.is_up or worker.is_frozen}
        return any(lease.worker not in up for lease in self.memory.scan().leases)

    def _stuck(self, record: Record | None) -> bool:
        """Whether the passing of time can no longer change anything."""
        if self.frozen:
            if record is None or (record.due is None and not record.fence.owner) or self._patience_is_over():
                self._thaw()
            return False
        if self.held:
            if self._patience_is_over():
                self._give_back()
            return False
        return record is None or (record.fence.generation == 0 and record.message is None)

    _waits = 0

    def _patience_is_over(self) -> bool:
        self._waits += 1
        return self._waits > 6

    def _pass_time_and_sweep(self) -> None:
        record = self.record()
        due = (record.due if record else None) or 0.0
        self.clock = max(self.clock + _WHILE, min(due, self.clock + _LONG))
        for worker in self.workers:
            if worker.is_up:
                worker.renew()
            else:
                worker.lapsed = True
        self.history.append("** time passes")
        if not self._spare.is_up:
            self._spare = self._new_worker()
        self.start("sweep", self._spare, self._spare.sweep)

    def _deliver(self) -> None:
        self._run(self.queue.pop(0))

    def _run(self, message: Message) -> None:
        worker = self._serving()
        worker.unacked.append(message)
        actor: Actor

        def run() -> None:
            actor.request = request = Request(
                message,
                on_ack=lambda *args: self.io("ack", lambda: self._settle(worker, message)),
                on_reject=lambda logger, errors, requeue=False: self.io(
                    f"reject {requeue}", lambda: self._settle(worker, message, requeue)
                ),
                hostname=worker.name,
                app=self.app,
                task=self.scenario.task,
            )
            celery_state.task_reserved(request)
            with suppress(TaskRevokedError):
                request.execute_using_pool(_Pool(self, actor))

        actor = self.start("execution", worker, run)
        actor.message = message

    def _settle(self, worker: Worker, message: Message, requeue: bool = False) -> None:
        if message in worker.unacked:
            self.has_written = True
            worker.unacked.remove(message)
            if requeue:
                self.queue.append(message.copy(redelivered=True))

    def start(self, kind: str, worker: Worker | Process, run: Callable[[], None]) -> Actor:
        """Start an actor, ahead of those that are running."""
        self._actors += 1
        actor = Actor(self, kind, worker, self._actors, run)
        self.stack.append(actor)
        return actor

    def _serving(self) -> Worker:
        """Return the idle worker; there is always exactly one."""
        worker = next(iter(self._idle_workers()), None) or self._new_worker()
        self._new_worker()
        return worker

    def _idle_workers(self) -> list[Worker]:
        busy = {self._spare, *(actor.worker for actor in self.stack)}
        return [one for one in self.workers if one.is_up and not one.is_stopping and one not in busy]

    def _let_go(self, worker: Worker) -> None:
        """Reset a worker whose actors have ended, and end it if another worker is idle."""
        record = self.record()
        if all(actor.worker is not worker for actor in self.stack) and (
            record is None or record.fence.worker != worker.name
        ):
            worker.lapsed = worker.was_frozen = False
        idle = self._idle_workers()
        if worker in idle and len(idle) > 1:
            worker.end()

    def _new_worker(self) -> Worker:
        worker = Worker(self, f"W{len(self.workers)}")
        self.workers.append(worker)
        return worker

    # -- faults

    def _crash_child(self, actor: Actor) -> None:
        self._lose("crashes")
        self._lose_child(actor)

    def _lose_child(self, actor: Actor) -> None:
        """End the process of an execution; its worker's main process continues."""
        self._end_child(actor)
        self.start("lost", actor.worker, lambda: self.report(actor, WorkerLostError("simulated")))
        sweep = lambda: self.start("sweep", actor.worker, actor.worker.sweep)  # noqa: E731
        self._take([("its request learns it first", lambda: None), ("its maintenance learns it first", sweep)])  # type: ignore[list-item]

    def _revoke(self, actor: Actor) -> None:
        """Revoke the task: the main process ends its execution."""
        self.is_revoked = True
        if self.scenario.is_remembered:
            celery_state.revoked.add(TASK_ID)

        def terminate_job(pid: Any, signal: Any) -> None:
            self.acting.fate = lambda _: self._end_child(actor)
            self.io("kill", lambda: None)

        def run() -> None:
            request = actor.request
            request.time_start = self.clock
            request.terminate(SimpleNamespace(terminate_job=terminate_job))
            self.report(actor, Terminated("simulated"))

        self.start("revoking", actor.worker, run).ends = actor

    def _limit(self, actor: Actor) -> None:
        """Let a hard time limit end an execution: as in billiard its request learns that twice, then it is killed."""
        self.is_revoked = True

        def run() -> None:
            self.report(actor, TimeLimitExceeded("simulated"))
            actor.request.on_timeout(False, 1)
            self.acting.fate = lambda _: self._end_child(actor)
            self.io("kill", lambda: None)

        self.start("limiting", actor.worker, run).ends = actor

    def runs_in(self, owner: str, worker: str, child: Any) -> bool:
        """Stand in for the function of :mod:`celery_continuations.process.identity`."""
        return owner.startswith(f"{worker}/c{child}/")

    def on_revoked(self, task: Any, request: Any) -> None:
        """Stand in for the handler of :mod:`celery_continuations.worker.bootstep`."""
        Hearing._on_revoked(self.acting.worker, sender=task, request=request)  # type: ignore[arg-type]

    def _end_child(self, actor: Actor) -> None:
        actor.worker.lost_children.add(actor.child)
        self.stack.remove(actor)
        self.kill(actor)

    @staticmethod
    def report(actor: Actor, error: BaseException) -> None:
        """Tell a request of an error that its process did not report."""
        try:
            raise error
        except type(error):
            info = PlainInfo()
        actor.request.on_failure(info)

    def _crash_worker(self, worker: Worker) -> None:
        self._lose("crashes")
        self._end_worker(worker)

    def _end_worker(self, worker: Worker) -> None:
        for actor in [one for one in self.stack if one.worker is worker]:
            self.stack.remove(actor)
            self.kill(actor)
        worker.is_crashed = True
        self._return_unacked(worker)

    def _freeze(self, actor: Actor) -> None:
        worker = actor.worker
        for one in [one for one in self.stack if one.worker is worker]:
            self.stack.remove(one)
            self.frozen.append(one)
        self._lose("freezes")
        worker.is_frozen = worker.was_frozen = self.has_frozen = True
        self._return_unacked(worker)

    def _thaw(self) -> None:
        self.history.append("** thaw")
        for actor in self.frozen:
            actor.worker.is_frozen = False
            if actor.watch is not None:
                actor.watch.check()
        self.stack += self.frozen
        self.frozen = []

    def _lose(self, kind: str) -> None:
        self.losses += 1
        self.budget = self.budget.less(kind)

    def _return_unacked(self, worker: Worker) -> None:
        """Close the connection: the broker decides what happens to its messages."""
        for message in worker.unacked:
            if self.scenario.broker == "amqp":
                self.queue.append(message.copy(redelivered=True))
            elif self.scenario.broker == "redis":
                self.held.append(message.copy(redelivered=True))
            elif not self.promises.known:
                self.may_lose_fresh = True
        if not worker.is_frozen or self.scenario.broker != "filesystem":
            worker.unacked = []

    def _give_back(self) -> None:
        self._run(self.held.pop(0))

    def _duplicate(self, generation: int) -> None:
        self.budget = self.budget.less("duplicates")
        self._run(self.sent[generation].copy(redelivered=True))

    def _late_duplicate(self) -> None:
        self.clock += _LONG
        self._duplicate(max(self.sent))

    def _store_fault(self, actor: Actor, fault: str) -> None:
        self.budget = self.budget.less("errors")
        self.errors += fault == "away"
        actor.store_fault = fault

    def kill(self, actor: Actor) -> None:
        """Stop an actor whose process has ended."""
        actor.is_dead = True
        if actor.greenlet and not actor.greenlet.dead:
            self.actor = actor
            try:
                actor.greenlet.throw(Killed)
            except Killed:
                pass
            finally:
                self.actor = None

    def _clear(self) -> None:
        for actor in [*self.stack, *self.frozen, *self.clients.aside]:
            self.kill(actor)
        for worker in self.workers:
            maintenance._by_worker.pop(worker.name, None)
            flags._by_hostname.pop(worker.name, None)
            flags._by_path.pop(worker.name, None)

    # -- what the future depends on

    def key(self) -> bytes:
        """Return a digest of the state that the future depends on, without the remaining faults."""
        record = self.record()
        known = record.fence if record else None
        base = known.generation if known else 0
        text = "\n".join(
            (
                told(record),
                told(self.memory.scan()),
                self._lines(self.queue),
                self._lines(self.held),
                self._lines([self.sent[m] for m in self._to_duplicate()]),
                *[actor.told(known) for actor in self.stack],
                "frozen",
                *[actor.told(known) for actor in self.frozen],
                f"{self._spare.name} {self._late} {self.may_lose_fresh} {self.errors > 0} {self.is_revoked} "
                f"{self.has_frozen} {self._waits} {self.promises.key()} {self.scenario.key()} "
                f"{self.clients.key()} {sorted(self.children)} {self.results}",
            )
        )
        there = [one for one in self.workers if not one.has_ended or f"{one.name}/" in text or f"{one.name}:" in text]
        text += "\n" + "".join(
            [one.told(text, self._lines(one.unacked) if self.scenario.broker != "filesystem" else "") for one in there]
        )
        names: dict[str, str] = {}

        def rename(found: re.Match[str]) -> str:
            name = found[0]
            if name[0].isdigit():
                return f"{float(name) - self.clock:+.3f}"
            if name[0] == "g":
                return f"g{int(name[1:]) - base:+d}"
            return names.setdefault(name, f"{name[0]}#{len(names)}")

        self.text = _NAME.sub(rename, text)
        return hashlib.blake2b(self.text.encode(), digest_size=12).digest()

    def _lines(self, messages: list[Message]) -> str:
        record = self.record()
        return str([message.told_to(record.fence if record else None) for message in messages])

    def _to_duplicate(self) -> list[int]:
        """Return the generations whose messages may be delivered again; long stale ones are equivalent."""
        if not self.budget.has("duplicates"):
            return []
        record = self.record()
        newest = record.fence.generation if record else 0
        stale = [m for m in sorted(self.sent) if m < newest - 1]
        return stale[:1] + [m for m in sorted(self.sent) if m >= newest - 1]

    @property
    def repeats_allowed(self) -> int:
        """Return how many repetitions are allowed so far."""
        return self.scenario.repeats + self.losses * self.scenario.repeats_for_each * (1 + self.errors)

    @property
    def slack(self) -> int:
        """Return how many allowed repetitions are unused so far."""
        return self.repeats_allowed - sum(runs - 1 for runs in self.promises.runs.values())


# Workers, children, executions, generations and values are numbered in order of appearance, and times are relative
# to now: histories that differ only in these are equal.
_NAME = re.compile(r"\b[Wcegtb]\d+\b|\b1\d{6}\.\d+\b")


class _Pool:
    """A pool whose one process is the actor's greenlet."""

    def __init__(self, world: World, actor: Actor) -> None:
        self._world = world
        self._actor = actor

    def apply_async(self, target: Any, args: Any, callback: Any, **options: Any) -> None:
        self._actor.in_child = True
        self._actor.request.worker_pid = self._actor.number
        self._world.has_written = True
        self._world.io("delivered", lambda: None)
        result = target(*args, app=self._world.app)
        self._actor.in_child = False
        if self._world.scenario.is_unsendable and self._world.promises.known:
            self._world.report(self._actor, MaybeEncodingError("simulated", "simulated"))
        else:
            callback(result)
