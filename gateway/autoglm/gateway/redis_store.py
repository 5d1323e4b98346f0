"""The Redis or Valkey that gateways share. It must never be the reason that a request fails."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from autoglm.gateway.metrics import Metrics
from autoglm.gateway.settings import Settings

logger = logging.getLogger("autoglm.gateway.redis_store")

T = TypeVar("T")


class Store:
    """A connection that never raises. After a failure it is left alone for a while: no request pays its timeout."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._timeout, self._backoff = settings.redis_timeout, settings.redis_backoff
        self._metrics = metrics
        self._up: bool | None = None
        self._resume = 0.0
        self.client = redis.asyncio.Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=self._timeout,
            socket_connect_timeout=self._timeout,
            retry=Retry(NoBackoff(), 0),
        )

    @property
    def up(self) -> bool:
        """Whether Redis answered the last time it was asked."""
        return bool(self._up)

    async def ask(self, command: Callable[[], Awaitable[T]]) -> T | None:
        """Return what `command` returns, or None while Redis is down, slow or wrong."""
        if time.monotonic() < self._resume:
            return None
        try:
            async with asyncio.timeout(self._timeout):
                answer = await command()
        except (RedisError, OSError, TimeoutError) as error:
            self._resume = time.monotonic() + self._backoff
            self._turn(False, type(error).__name__)
            return None
        self._turn(True, "")
        return answer

    async def ping(self) -> None:
        """Learn whether Redis answers."""
        await self.ask(lambda: self.client.ping())

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    def _turn(self, up: bool, reason: str) -> None:
        if up != self._up:
            self._up = up
            self._metrics.redis_up.set(up)
            if up:
                logger.info("redis answers")
            else:
                logger.warning(
                    "redis does not answer (%s); embeddings are computed, and limits hold in each gateway alone", reason
                )
