"""What the views of the documentation are mounted in: Flask, and a stand-in for FastAPI, which is not installed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

__all__ = ["FastAPI", "stand_in"]


class Request:
    """The parts of a request that the documentation uses."""

    def __init__(self, body: bytes, content_type: str) -> None:
        self.headers = {"content-type": content_type}
        self._body = body

    async def body(self) -> bytes:
        return self._body


class Response(NamedTuple):
    """An answer."""

    content: bytes
    status_code: int
    headers: dict[str, str]


class FastAPI:
    """Calls a view for a path with one parameter."""

    def __init__(self) -> None:
        self._views: list[Any] = []

    def post(self, path: str) -> Callable[[Any], Any]:
        assert path.endswith("/{token}")

        def keep(view: Any) -> Any:
            self._views.append(view)
            return view

        return keep

    def call(self, token: str, body: bytes, content_type: str) -> Response:
        (view,) = self._views
        answer: Response = asyncio.run(view(token, Request(body, content_type)))
        return answer


async def run_in_threadpool(func: Any, *args: Any) -> Any:
    return await asyncio.to_thread(func, *args)


def stand_in() -> None:
    """Let ``import fastapi`` find the stand-in."""
    fastapi, concurrency = ModuleType("fastapi"), ModuleType("fastapi.concurrency")
    fastapi.__dict__.update(Request=Request, Response=Response, FastAPI=FastAPI, concurrency=concurrency)
    concurrency.__dict__.update(run_in_threadpool=run_in_threadpool)
    sys.modules.update({"fastapi": fastapi, "fastapi.concurrency": concurrency})
