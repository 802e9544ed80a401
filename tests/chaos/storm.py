"""Faults at random."""

from __future__ import annotations

import heapq
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from tests.chaos.checks import Faults
from tests.chaos.site import Site, children_of
from tests.support.processes import LocalProcess

#: Seconds that a worker may take to stop: its tasks reach a checkpoint within a tenth of a second, and now and then its
#: pool waits for a process, soon after the connection to the broker was lost (docs/limits.md).
LEAVES_WITHIN = 45.0

# A thread that asks for the processor this often shows when the machine was too busy to give it in time.
_TICK = 0.02


class Storm:
    """Stops, kills, freezes and disconnects the workers of a site.

    Args:
        site: whose workers.
        rng: chooses the next fault.
        lease: ``continuation_lease``: a freeze lasts longer.
        workers: how many to run.
    """

    def __init__(self, site: Site, rng: random.Random, lease: float, workers: int) -> None:
        self.faults = Faults()
        self.problems: list[str] = []
        self._site = site
        self._rng = rng
        self._lease = lease
        self._up = [site.start_worker()]
        if site.broker is None:
            self.await_ready()  # kombu's files are corrupted if several workers create them at once
        self._up += [site.start_worker() for _ in range(workers - 1)]
        self._leaving: list[tuple[float, str, LocalProcess]] = []
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._refused_until = 0.0
        self._is_over = threading.Event()
        threading.Thread(target=self._measure_lateness, daemon=True).start()
        self._kinds: list[Callable[[], None]] = [
            self._stop_term, self._stop_quit, self._stop_group,
            self._kill_main, self._kill_group, self._kill_child, self._kill_child,
            self._freeze,
        ]  # fmt: skip
        if site.broker is not None:
            self._kinds += [self._cut_broker, self._cut_store, self._refuse_broker, self._refuse_store]
            self._kinds += [self._stop_without_store]

    def await_ready(self) -> None:
        for worker in self._up:
            worker.await_log(" ready.")

    def strike(self) -> None:
        """Cause one fault."""
        self._rng.choice(self._kinds)()

    def tick(self) -> None:
        """Perform the due actions, and note the workers that have exited."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
        for told, how, worker in list(self._leaving):
            took = time.monotonic() - told
            if worker.process.poll() is not None or took > LEAVES_WITHIN:
                self._leaving.remove((told, how, worker))
                if worker.process.poll() is None:
                    self.problems.append(
                        f"{worker.name} did not leave within {LEAVES_WITHIN:.0f} s of {how}:\n{worker.text}"
                    )
                    worker.kill()
        for number, worker in enumerate(self._up):
            if worker.process.poll() is not None:
                if _ended_by_celery(worker.text):
                    self.faults.counts["workers that Celery ended"] += 1
                else:
                    self.problems.append(f"{worker.name} exited by itself, {worker.process.returncode}:\n{worker.text}")
                self._up[number] = self._site.start_worker()

    def calm(self) -> None:
        """Let all running faults end."""
        while self._later or self._leaving:
            self.tick()
            time.sleep(0.05)

    def end(self) -> None:
        """Stop measuring the machine."""
        self._is_over.set()

    def _measure_lateness(self) -> None:
        began = time.monotonic()
        while not self._is_over.wait(_TICK):
            now = time.monotonic()
            if now - began > 2 * _TICK:
                self.faults.machine_late.append((began, now))
            began = now

    # -- kinds

    def _stop_term(self) -> None:
        self._stop("SIGTERM", lambda worker: worker.kill("SIGTERM"))

    def _stop_quit(self) -> None:
        self._stop("SIGQUIT", lambda worker: worker.kill("SIGQUIT"))

    def _stop_group(self) -> None:
        self._stop("SIGTERM to the group", lambda worker: worker.signal_group(signal.SIGTERM))

    def _stop(self, how: str, act: Callable[[LocalProcess], None]) -> None:
        worker = self._replace()
        if worker is not None:
            act(worker)
            self.faults.counts[how] += 1
            self._leaving.append((time.monotonic(), how, worker))

    def _kill_main(self) -> None:
        worker = self._replace()
        if worker is not None:
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            self._killed("kill -9 of the main process")

    def _kill_group(self) -> None:
        worker = self._replace()
        if worker is not None:
            worker.kill()
            self._killed("kill -9 of the group")

    def _kill_child(self) -> None:
        worker = self._one()
        children = children_of(worker.process.pid) if worker else []
        if self._site.broker is None:
            # Without an event loop children share a queue, and a child killed while it waits keeps it locked.
            children = [pid for pid in children if pid in self._site.at_work()]
        if children:
            with suppress(ProcessLookupError):
                os.kill(self._rng.choice(sorted(children)), signal.SIGKILL)
            self._killed("kill -9 of a child")

    def _killed(self, kind: str) -> None:
        self.faults.kills += 1
        self.faults.counts[kind] += 1

    def _freeze(self) -> None:
        worker = self._one()
        if worker is None:
            return
        self._up.remove(worker)
        froze = time.monotonic()
        worker.signal_group(signal.SIGSTOP)
        self.faults.counts["freezes"] += 1

        def thaw() -> None:
            self.faults.freezes[worker.process.pid].append((froze, time.monotonic()))
            worker.signal_group(signal.SIGCONT)
            self._up.append(worker)

        self._in(self._lease + self._rng.uniform(1, 2), thaw)

    def _cut_broker(self) -> None:
        assert self._site.broker is not None
        self._site.broker.cut()
        self.faults.counts["broker cut"] += 1

    def _cut_store(self) -> None:
        assert self._site.store is not None
        self._site.store.cut()
        self._store_was_away(time.monotonic())
        self.faults.counts["store cut"] += 1

    def _refuse_broker(self) -> None:
        assert self._site.broker is not None
        self._site.broker.refuse()
        self.faults.counts["broker refused"] += 1
        self._in(self._rng.uniform(0.2, 1.5), self._site.broker.accept)

    def _stop_without_store(self) -> None:
        """Stop a worker while the store is unavailable, from before the stop until seconds after it."""
        self._refuse_store(self._rng.uniform(2, 4))
        self._in(self._rng.uniform(0.2, 1), self._stop_term)

    def _refuse_store(self, seconds: float | None = None) -> None:
        store, began = self._site.store, time.monotonic()
        assert store is not None
        store.refuse()
        self.faults.counts["store refused"] += 1

        def accept() -> None:
            if time.monotonic() >= self._refused_until:  # another refusal may last longer
                store.accept()
            self._store_was_away(began)

        seconds = self._rng.uniform(0.2, 1.5) if seconds is None else seconds
        self._refused_until = max(self._refused_until, began + seconds)
        self._in(seconds, accept)

    def _store_was_away(self, since: float) -> None:
        self.faults.store_away.append((since, time.monotonic() + 0.2))

    # -- workers

    def _one(self) -> LocalProcess | None:
        """Return a running worker, or None if it is the last one."""
        ready = [worker for worker in self._up if " ready." in worker.text]
        return self._rng.choice(ready) if len(ready) > 1 else None

    def _replace(self) -> LocalProcess | None:
        worker = self._one()
        if worker is not None:
            self._up.remove(worker)
            self._up.append(self._site.start_worker())
        return worker

    def _in(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, len(self._later), act))


def _ended_by_celery(log: str) -> bool:
    """Whether a worker ended because of an error in Celery or its transport, not in this library.

    Redis's transport fails if it cannot return messages to an unavailable server; the file transport fails if a
    message's writer was killed; the pool fails if a process ends while the worker connects again.
    """
    _, ended, traceback = log.partition("Unrecoverable error")
    return bool(ended) and "celery_continuations/" not in traceback
