"""The views of docs/callbacks.md, behind the frameworks that they are written for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from flask import Flask

from celery_continuations.callbacks import callback_url
from celery_continuations.stores import open_store
from tests.support import web
from tests.support.worker import make_app

PAGE = Path(__file__).parents[3] / "docs" / "callbacks.md"

Post = Callable[[str, bytes, str], int]


def view(word: str, **names: Any) -> dict[str, Any]:
    """Run the block of the page that imports ``word``."""
    (block,) = (
        one
        for one in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
        if "take_callback" in one and f"from {word}" in one
    )
    names["__name__"] = "page"
    exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
    return names


def in_django(app: Celery) -> Post:
    from django.test import RequestFactory

    take = view("django.http", app=app)["take_callback"]

    def post(token: str, body: bytes, kind: str) -> int:
        request = RequestFactory().post(f"/callbacks/{token}", body, content_type=kind)
        return int(take(request, token).status_code)

    return post


def in_flask(app: Celery) -> Post:
    flask = Flask("web")
    view("flask ", app=app, flask_app=flask)

    def post(token: str, body: bytes, kind: str) -> int:
        return flask.test_client().post(f"/callbacks/{token}", data=body, content_type=kind).status_code

    return post


def in_fastapi(app: Celery) -> Post:
    web.stand_in()
    api = web.FastAPI()
    view("fastapi ", app=app, api=api)
    return lambda token, body, kind: api.call(token, body, kind).status_code


@pytest.mark.parametrize("mounted", [in_django, in_flask, in_fastapi])
def test_a_view_answers_what_is_documented(mounted: Callable[[Celery], Post]) -> None:
    app = make_app(
        continuation_callback_url="https://example.com/callbacks",
        continuation_callback_secret="only a test, of 32 characters or more",
    )
    post, store = mounted(app), open_store(app, "memory")
    token = callback_url(app, "of the page of callbacks", "payment").rpartition("/")[2]
    for stranger in (b"{", b"[" * 200_000, b'{"paid": true}'):
        assert post("guessed", stranger, "application/json") == 404
    assert post(token, b"[" * 60_000, "application/json") == 400
    assert post(token, b"[" * 65 + b"]" * 65, "application/json") == 400
    assert post(token, b"x" * 70_000, "application/json") == 413
    assert post(token, b"paid=1", "application/x-www-form-urlencoded") == 415
    assert not list(store.records())
    assert post(token, b'{"paid": true, "sum": 1}', "text/plain; charset=UTF-8") == 204
    assert post(token, b'{"sum": 1.0, "paid": true}', "application/json") == 204
    assert post(token, b'{"paid": false}', "application/json") == 409
    (found,) = dict(store.records())
    assert found == "of the page of callbacks"
