"""One run: send, disturb, wait, count."""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from celery import chain, chord

from celery_continuations.stores import Store, open_store
from tests.chaos.checks import Checker, Sent, Verdict
from tests.chaos.site import BROKERS, Site
from tests.chaos.storm import Storm

#: Tasks for each second, on three workers with two processes each.
RATE = 8

# A message that has not begun this long after all other work has ended was lost by the broker.
_QUIET = 8.0


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--broker", choices=BROKERS, default="redis")
    parser.add_argument("--seconds", type=float, default=25.0, help="of faults (default: 25)")
    parser.add_argument("--seed", type=int, default=None, help="of what is done (default: a new one)")
    parser.add_argument("--workers", type=int, default=3, help="of two processes each (default: 3)")
    parser.add_argument("--tasks", type=int, default=None, help=f"in all (default: {RATE} for each second)")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two faults (default: 1)")
    parser.add_argument("--lease", type=float, default=2.0)
    parser.add_argument("--sweep", type=float, default=0.5)
    parser.add_argument("--interval", type=float, default=0.2, help="continuation_checkpoint_interval (default: 0.2)")
    parser.add_argument("--overdue-after", type=float, default=3.0, help="until a message is overdue (default: 3)")
    parser.add_argument("--keep", action="store_true", help="keep logs and trace")
    options = parser.parse_args(argv)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)
    if options.tasks is None:
        options.tasks = int(options.seconds * RATE)
    return options


class Run:
    """Sends hundreds of tasks, and checks their outcome.

    Args:
        options: of the command line.
        say: prints a line.
    """

    def __init__(self, options: argparse.Namespace, say: Any = print) -> None:
        self.options = options
        self.sent: list[Sent] = []
        self.chords: dict[str, list[Sent]] = {}
        self.sent_again = 0
        self.seconds = 0.0
        self.problems: list[str] = []
        self.storm: Storm
        self.checker: Checker
        self._say = say
        self._rng = random.Random(options.seed)
        self._token = uuid.uuid4().hex[:6]
        self._is_on_files = options.broker == "filesystem"

    def __call__(self) -> bool:
        """Run; return whether all checks passed."""
        began = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="celery-continuations-chaos-"))
        folder.chmod(0o755)  # RabbitMQ runs as its own user
        options = self.options
        conf = {
            "continuation_lease": options.lease,
            "continuation_sweep_interval": options.sweep,
            "continuation_checkpoint_interval": options.interval,
            "chaos_overdue_after": options.overdue_after,
        }
        holds = False
        try:
            with Site(options.broker, folder, conf) as site:
                self._disturb(site)
                self._await_all(site)
                self.storm.end()
                self._check(site)
            holds = not self.problems and not self.verdict.wrong
        finally:
            self.seconds = time.monotonic() - began
            if holds and not options.keep:
                shutil.rmtree(folder)
            else:
                self._say(f"Logs and trace are in {folder}")
        return holds

    @property
    def verdict(self) -> Verdict:
        return self.checker.verdict

    # -- sending

    def _disturb(self, site: Site) -> None:
        options = self.options
        self.storm = storm = Storm(site, self._rng, options.lease, options.workers)
        storm.await_ready()
        began = strike_at = time.monotonic()
        strike_at += options.every
        until = began + options.seconds
        while (now := time.monotonic()) < until:
            # a third at once, so that there is always a queue
            share = min(1.0, 1 / 3 + (now - began) / options.seconds)
            while len(self.sent) < share * options.tasks:
                self._send(site)
            if now >= strike_at:
                strike_at += options.every * self._rng.uniform(0.5, 1.5)
                storm.strike()
            storm.tick()
            time.sleep(0.02)
        while len(self.sent) < options.tasks:
            self._send(site)
        storm.calm()

    def _new(self, **more: Any) -> Sent:
        number, rng = len(self.sent), self._rng
        one = Sent(
            id=f"task-{number}-{self._token}",
            number=number,
            items=rng.randint(5, 25),
            pages=rng.randint(0, 8),
            isolated=rng.random() < 0.2,
            **more,
        )
        self.sent.append(one)
        return one

    def _signature(self, site: Site, one: Sent) -> Any:
        signature = site.client.signature(
            "chaos.work",
            args=(one.number, one.items, one.pages, 0.02, one.isolated),
            immutable=True,
            task_id=one.id,
            soft_time_limit=one.limit,
        )
        if one.linked:
            signature.link(site.client.signature("chaos.called", args=(one.number,)))
        return signature

    def _send(self, site: Site) -> None:
        dice = self._rng.random()
        # On files, a killed worker loses its unstarted messages; only those of tasks can be sent again.
        if self._is_on_files or dice > 0.35:
            limit = self._rng.uniform(0.1, 1) if self._rng.random() < 0.15 else None
            signature = self._signature(site, self._new(linked=dice > 0.7, limit=limit))
            self._publish(site, signature)
            if self._rng.random() < 0.1:
                self._publish(site, signature)
                self.storm.faults.counts["messages sent twice"] += 1
        elif dice > 0.15:
            first = self._new()
            both = [first, self._new(after=first.id)]
            self._publish(site, chain([self._signature(site, one) for one in both], app=site.client))
        else:
            body = f"body-{len(self.sent)}-{self._token}"
            header = [self._new(chord=body, linked=self._rng.random() < 0.3) for _ in range(3)]
            self.chords[body] = header
            total = site.client.signature("chaos.total", task_id=body)
            self._publish(site, chord([self._signature(site, one) for one in header], total, app=site.client))

    def _publish(self, site: Site, signature: Any) -> None:
        while site.broker is not None and not site.broker.accepts:
            self.storm.tick()
            time.sleep(0.02)
        signature.apply_async()

    # -- waiting

    def _await_all(self, site: Site) -> None:
        until = time.monotonic() + 60 + 2 * self.options.seconds
        waiting = {one.id: one for one in self.sent}
        bodies = set(self.chords)
        changed, trace_size = time.monotonic(), 0
        while (waiting or bodies) and (now := time.monotonic()) < until:
            self.storm.tick()
            for task_id in [*waiting, *bodies]:
                if site.client.backend.get_state(task_id) in ("SUCCESS", "FAILURE", "REVOKED"):
                    waiting.pop(task_id, None)
                    bodies.discard(task_id)
            size = site.trace.stat().st_size
            if size != trace_size:
                changed, trace_size = now, size
            elif now - changed > _QUIET:
                changed = now
                lost = self._lost_by_the_broker(site, waiting)
                for one in lost:
                    self.sent_again += 1
                    self._signature(site, one).apply_async()
                if not lost and not waiting and self.broker_loses:
                    bodies.clear()
            time.sleep(0.2)
        store = _store_of(site)
        for task_id in waiting:  # the checker looks at the bodies
            self.problems.append(f"not done: {task_id}, {store.read(task_id)}, leases {store.scan(limit=0).leases}")

    @property
    def broker_loses(self) -> bool:
        """Whether unstarted messages may be lost, given the faults and the broker.

        On files, a worker loses those that it holds.  Redis loses those that it has sent when the connection breaks,
        or the worker is killed, before the worker has noted them as its own.
        """
        counts = self.storm.faults.counts
        cut = counts["broker cut"] + counts["broker refused"]
        return self._is_on_files or (self.options.broker == "redis" and cut + self.storm.faults.kills > 0)

    def _lost_by_the_broker(self, site: Site, waiting: dict[str, Sent]) -> list[Sent]:
        if not self.broker_loses:
            return []
        # The broker cannot lose a task that has a record.
        store = _store_of(site)
        return [one for one in waiting.values() if store.read(one.id) is None]

    # -- counting

    def _check(self, site: Site) -> None:
        self.problems += self.storm.problems
        self.checker = checker = Checker(site.lines(), self.storm.faults, self.options.interval)
        backend = site.client.backend
        for one in self.sent:
            meta = backend.get_task_meta(one.id)
            checker.check(one, meta["status"], meta["result"], callbacks_can_be_lost=self.broker_loses)
        for body, header in self.chords.items():
            can_be_lost = self.broker_loses or self._has_lost_one_of(site, header)  # docs/limits.md
            checker.check_body(body, header, backend.get_state(body), can_be_lost=can_be_lost)

    def _has_lost_one_of(self, site: Site, header: list[Sent]) -> bool:
        """Whether an execution of a chord's header was lost: more have claimed the task than have left it."""
        records = {one.id: _store_of(site).read(one.id) for one in header}
        return any(
            record is not None and record.fence.generation - 1 > self.checker.interruptions(task_id)
            for task_id, record in records.items()
        )


def _store_of(site: Site) -> Store:
    return open_store(site.client, site.client.conf.get("continuation_store", "auto"))
