"""The private parts of Celery that are used: each test fails when one of them changes."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from typing import Any

from celery import Celery

from celery_continuations import celery_internals
from celery_continuations.celery_internals import workers


def test_seam_around_soft_shutdown() -> None:
    from celery.worker import WorkController

    order: list[str] = []

    class Worker:
        pool_cls = object

        def wait_for_soft_shutdown(self) -> None:
            order.append("waits")

    worker = Worker()
    celery_internals.around_soft_shutdown(worker, lambda: order.append("before"), lambda: order.append("after"))
    worker.wait_for_soft_shutdown()
    assert order == ["before", "waits", "after"]
    assert callable(WorkController.wait_for_soft_shutdown)
    from celery.apps import worker as celery_worker

    source = inspect.getsource(celery_worker.on_cold_shutdown)
    cancels = [f"worker.consumer.{name}()" for name in workers._CANCELLATIONS]
    (cancel,) = [call for call in cancels if call in source]
    assert source.index("worker.wait_for_soft_shutdown()") < source.index(cancel)


def test_seam_pool_children_and_their_signal() -> None:
    assert celery_internals.in_pool_child() is False
    assert celery_internals.terminate_signal() == signal.SIGTERM
    code = "from celery_continuations import celery_internals; print(celery_internals.terminate_signal())"
    env = {**os.environ, "REMAP_SIGTERM": "SIGQUIT"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) == signal.SIGQUIT


def test_seam_the_results_of_a_stopping_pool() -> None:
    """The real stop is in tests/integration/test_stopping.py."""
    from billiard import pool
    from celery.concurrency import asynpool

    assert {"check_timeouts", "join_exited_workers"} <= set(inspect.signature(pool.ResultHandler).parameters)
    assert list(inspect.signature(asynpool.ResultHandler._flush_outqueue).parameters) == [
        "self", "fd", "remove", "process_index", "on_state_change",
    ]  # fmt: skip
    assert "not job._accepted" in inspect.getsource(asynpool.AsynPool.flush)
    assert "on_ready_counter" in inspect.getsource(pool.Worker._ensure_messages_consumed)


def test_seam_predicates() -> None:
    from celery.exceptions import Ignore, Reject, Retry

    assert all(map(celery_internals.is_predicate, (Retry(), Ignore(), Reject())))
    assert not celery_internals.is_predicate(ValueError())


def test_seam_replacements(app: Celery, worker: Any) -> None:
    from celery.exceptions import Ignore

    ends: list[BaseException] = []

    @app.task(bind=True, name="replaced")
    def replaced(self: Any) -> None:
        try:
            self.replace(app.signature("other"))
        except BaseException as exc:
            ends.append(exc)
            raise

    replaced.delay()
    worker.deliver()
    (end,) = ends
    assert celery_internals.is_replacement(end)
    assert not celery_internals.is_replacement(Ignore("something else"))
    assert not celery_internals.is_replacement(None)


def test_seam_pool_pids(app: Celery) -> None:
    from celery.concurrency.prefork import TaskPool as Prefork
    from celery.concurrency.solo import TaskPool as Solo

    class Owner:
        pool: Any = None

    assert celery_internals.pool_pids(Owner()) == []
    Owner.pool = Solo(app=app)
    assert celery_internals.pool_pids(Owner()) == []
    Owner.pool = Prefork(2, app=app)
    Owner.pool.start()
    try:
        assert sorted(celery_internals.pool_pids(Owner())) == sorted(Owner.pool.info["processes"])
        assert len(celery_internals.pool_pids(Owner())) == 2
    finally:
        Owner.pool.terminate()


def test_seam_backends_that_keep_results(tmp_path: Any) -> None:
    def keeps(backend: str | None) -> bool:
        return celery_internals.keeps_results(
            Celery("seam", backend=backend, broker="memory://", set_as_current=False).backend
        )

    assert keeps(f"file://{tmp_path}")
    assert not keeps("rpc://")
    assert not keeps(None)


def test_seam_a_lost_process() -> None:
    from billiard.einfo import ExceptionWithTraceback
    from celery.exceptions import WorkerLostError

    def wrapped(error: BaseException) -> Any:
        try:
            raise error
        except BaseException as exc:
            return ExceptionWithTraceback(exc, exc.__traceback__)

    assert celery_internals.is_lost_process(WorkerLostError())
    assert celery_internals.is_lost_process(wrapped(SystemExit(1)))
    assert not celery_internals.is_lost_process(wrapped(ValueError()))
    assert not celery_internals.is_lost_process(ValueError())


def test_seam_ignore_result() -> None:
    from celery.app.task import Context

    class Task:
        ignore_result = True

    assert celery_internals.ignore_result_of(Task, Context()) is True
    assert celery_internals.ignore_result_of(Task, Context(ignore_result=None)) is True
    assert celery_internals.ignore_result_of(Task, Context(ignore_result=False)) is False


def test_seam_reports_mask_settings(app: Celery, monkeypatch: Any) -> None:
    from celery.app import utils

    monkeypatch.setattr(utils, "filter_hidden_settings", utils.filter_hidden_settings)
    celery_internals.mask_in_reports(lambda name, value: "masked" if name == "ours" else value)
    app.conf.update(ours="text", other="text", some={"ours": "text"})
    assert app.conf.table()["ours"] == "masked"
    assert app.conf.table()["other"] == "text"
    assert app.conf.table()["some"] == {"ours": "masked"}
    assert "ours: 'masked'" in app.bugreport()


def test_seam_serializers() -> None:
    assert celery_internals.serializer_of("application/json") == "json"
    assert celery_internals.serializer_of("application/x-python-serialize") == "pickle"
    assert celery_internals.serializer_of("application/data") is None
    assert celery_internals.serializer_of(None) is None


def test_seam_promises(app: Celery) -> None:
    def body(self: Any) -> None:
        pass

    promise = app.task(bind=True, name="promised", queue=None)(body)
    assert celery_internals.promised_options(promise) == {"bind": True, "name": "promised", "queue": None}
    evaluated: list[Any] = []
    celery_internals.when_evaluated(promise, evaluated.append)
    assert evaluated == []
    app.finalize()
    assert [task.name for task in evaluated] == ["promised"]
    assert celery_internals.promised_options(promise) is None
    assert celery_internals.promised_options(app.tasks["promised"]) is None


def test_seam_requests_are_as_the_republisher_reads_them(app: Celery) -> None:
    """Attributes that only the instance has, and that ``Context`` does not promise."""
    from celery.app.task import Context

    context = Context({"argsrepr": "a", "compression": "zlib", "mine": 1, "continuation_generation": 2})
    assert (context.argsrepr, context.compression) == ("a", "zlib")
    assert context.headers == {"mine": 1, "continuation_generation": 2}
    message = app.amqp.create_task_message("id", "name", (), {})
    assert set(message.body[2]) == {"callbacks", "errbacks", "chain", "chord"}


def test_seam_errors_that_a_main_process_learns_of() -> None:
    from billiard.einfo import ExceptionInfo
    from billiard.exceptions import Terminated, WorkerLostError
    from billiard.pool import MaybeEncodingError
    from celery.exceptions import Ignore, Retry, TimeLimitExceeded

    def received(error: BaseException) -> BaseException:
        """Return an error as it comes out of the pipe of a pool's process."""
        try:
            raise error
        except type(error):
            found: BaseException = ExceptionInfo().exception
        assert celery_internals.unwrapped(found) is error
        return found

    stored = (ValueError("x"), TimeLimitExceeded(1), WorkerLostError("x"), MaybeEncodingError("value", "reason"))
    assert all(celery_internals.is_stored_as_failure(received(one)) for one in stored)
    elsewhere = (Terminated("15"), MemoryError(), Ignore(), Retry(exc=ValueError()))
    assert not any(celery_internals.is_stored_as_failure(received(one)) for one in elsewhere)
    assert [celery_internals.is_unsendable(received(one)) for one in stored] == [False, False, False, True]
    assert celery_internals.is_lost_process(received(SystemExit(1)))


def test_seam_how_a_request_announces_what_it_stores() -> None:
    """``worker/requests.py`` overrides these methods and uses these attributes."""
    import inspect

    from celery.worker.request import Request

    names = list(inspect.signature(Request._announce_revoked).parameters)
    assert names == ["self", "reason", "terminated", "signum", "expired"]
    assert "_announce_revoked" in inspect.getsource(Request.revoked)
    assert "_announce_revoked" in inspect.getsource(Request.terminate)
    assert "_announce_cancelled" in inspect.getsource(Request.cancel)
    assert (Request._already_revoked, Request._already_cancelled, Request.worker_pid) == (False, False, None)
