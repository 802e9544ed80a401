"""No report, error or log shows a password that a setting of this package contains."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.worker import control as panel
from click.testing import CliRunner

from celery_continuations import ContinuableTask, StoreError, conf
from celery_continuations.bin import doctor
from celery_continuations.masking import masked
from celery_continuations.stores import factory, open_store
from tests.support.worker import make_app

PASSWORD = "STOREPW"

# Nothing listens at port 1; only a client of Sentinel takes long to notice.
RIGHT = [
    "redis://:STOREPW@127.0.0.1:1/0",
    "redis://user:STOREPW@127.0.0.1:1/0",
    "redis://127.0.0.1:1/0?password=STOREPW",
    "rediss://:STOREPW@127.0.0.1:1/0?ssl_cert_reqs=none",
    "sentinel://:STOREPW@127.0.0.1:1;sentinel://:STOREPW@127.0.0.1:2",
    "db+postgresql+psycopg://user:STOREPW@127.0.0.1:1/records",
    "db+postgresql+psycopg://127.0.0.1:1/records?user=user&password=STOREPW",
]
MISTYPED = [
    "postgresql://user:STOREPW@host/records",
    "redis:/:STOREPW@host",
    "redis//:STOREPW@host",
    "user:STOREPW@host",
    "redis://:STOREPW",
    "redis://:STOREPW/STOREPW@host",
    "redis://:more:STOREPW@host",
    "redis://host:STOREPW@/0",
    "http://:STOREPW@host,http://:STOREPW@host",
    "db+postgresql://user:one@STOREPW:STOREPW@host/records",
    "db+postgresql://user:STOREPW@host:STOREPW/records",
    "db+postgresql://user:STOREPW@host:port/records?password=STOREPW",
    "db+postgresql+asyncpg://user:STOREPW@host/records",
    "db+postgresql+asyncpg://host/records?password=STOREPW",
    "db+postgresql+nothing://user:STOREPW@host/records",
    "db+postgresql:user:STOREPW@host/records",
    b"redis://:STOREPW@host",
    ["redis://:STOREPW@host"],
    {"url": "redis://host", "user": "STOREPW"},
]
EVERY = pytest.mark.parametrize("value", [*RIGHT, *MISTYPED], ids=str)


def body(self: Any) -> None:
    pass


def own(app: Celery, namespace: str) -> Any:
    return "redis://:STOREPW@host"  # not a store


def stored_in(value: Any) -> Celery:
    app = make_app()
    app.conf.continuation_store = value
    return app


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def outputs(value: Any) -> Iterator[str]:
    """Yield all that is shown of an app whose store this is."""
    app = stored_in(value)
    app.conf.CELERY_CONTINUATION_STORE = value  # as Django's settings have it
    yield app.bugreport()
    yield app.conf.humanize()
    for with_defaults in (False, True):
        yield repr(app.conf.table(with_defaults=with_defaults))
    yield json.dumps(panel.conf(SimpleNamespace(app=app)), default=repr)
    connects = not str(value).startswith("sentinel")
    for check in (conf.validate, factory.stores_of, *((doctor.examine, used) if connects else ())):
        try:
            yield repr(check(app))
        except (ImproperlyConfigured, StoreError) as exc:
            yield told(exc)
        except TypeError as exc:
            assert not isinstance(value, str)
            yield told(exc)


def used(app: Celery) -> list[Any]:
    """Open and ask the app's stores."""
    return [(store, str(store), store.read("id")) for store in factory.stores_of(app)]


@EVERY
def test_no_output_shows_the_password(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    texts = list(outputs(value))
    assert any("continuation_store" in text for text in texts)
    for text in (*texts, caplog.text):
        assert PASSWORD not in text


@EVERY
def test_no_error_of_a_task_shows_the_password_of_its_store(value: Any) -> None:
    app = make_app()
    app.task(base=ContinuableTask, bind=True, name="any", continuation_store=value)(body)
    shown = [""]
    try:
        app.finalize()
        factory.stores_of(app)
    except (ImproperlyConfigured, StoreError) as exc:
        shown.append(told(exc))
    assert PASSWORD not in "".join(shown)


def test_the_result_of_a_function_that_is_not_a_store_is_masked() -> None:
    with pytest.raises(ImproperlyConfigured, match="returned 'redis://:..@host', which is not a") as caught:
        open_store(make_app(), f"{__name__}.own")
    assert PASSWORD not in told(caught.value)


def test_the_address_of_callbacks_is_masked() -> None:
    app = make_app(continuation_callback_url="https://user:STOREPW@host/callbacks")
    assert "continuation_callback_url: 'https://user:**@host/callbacks'" in app.bugreport()
    assert PASSWORD not in repr(doctor.examine(app))
    with pytest.raises(ImproperlyConfigured, match=r"ftp://user:\*\*@host"):
        conf.validate(make_app(continuation_callback_url="ftp://user:STOREPW@host"))


def test_why_auto_found_no_store_shows_no_password() -> None:
    app = stored_in("auto")
    app.conf.result_backend = "redis:/:STOREPW@host"
    assert PASSWORD not in (factory.without_store(app) or "")


def test_the_shell_shows_no_password() -> None:
    from celery.bin.celery import celery

    found = CliRunner().invoke(celery, ["-A", "tests.unit.test_masking:reported", "report"])
    assert found.exit_code == 0, found.output
    assert "redis://:**@host" in found.output
    assert PASSWORD not in found.output


reported = Celery("reported", set_as_current=False, broker="memory://")
reported.conf.continuation_store = "redis://:STOREPW@host"


@pytest.mark.parametrize(
    "url",
    [
        "auto",
        "django://other",
        "redis://host",
        "redis://host:6379/0",
        "redis://[::1]:6379/0?ssl_cert_reqs=none",
        "sentinel://one:26379;sentinel://two:26379",
        "redis+socket:///run/redis.sock",
        "file:///srv/with@at",
        "db+sqlite:////srv/progress.db",
        "db+postgresql+psycopg://user@host/records?sslmode=require",
    ],
)
def test_what_has_no_password_is_shown_whole(url: str) -> None:
    assert masked(url) == url
    assert f"continuation_store: '{url}'" in stored_in(url).bugreport()
