"""The store on Redis, as tests open it."""

from __future__ import annotations

from typing import Any


def redis_store(url: str, namespace: str) -> Any:
    from redis import Redis

    from celery_continuations.stores.redis import RedisStore

    return RedisStore(Redis.from_url(url), namespace)
