"""The Redis or Valkey server that gateways share, behind a circuit breaker: its failures never fail a request."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.settings import Settings

logger = logging.getLogger("autoglm.gateway.redis_store")

T = TypeVar("T")


class RedisStore:
    """A connection that never raises.

    Circuit breaker: after a failure it stays open for `redis_backoff` seconds, in which every request goes on without
    Redis at once instead of waiting for a timeout. The first request after that tries again.
    """

    def __init__(self, settings: Settings, metrics: GatewayMetrics) -> None:
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
        """Whether the last command succeeded."""
        return bool(self._up)

    async def ask(self, command: Callable[[], Awaitable[T]]) -> T | None:
        """Return the result of `command`, or None while Redis is down, slow or in error."""
        if time.monotonic() < self._resume:
            return None
        try:
            async with asyncio.timeout(self._timeout):
                answer = await command()
        except (RedisError, OSError, TimeoutError) as error:
            self._resume = time.monotonic() + self._backoff
            self._record(False, type(error).__name__)
            return None
        self._record(True, "")
        return answer

    async def ping(self) -> None:
        """Update `up`."""
        await self.ask(lambda: self.client.ping())

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    def _record(self, up: bool, reason: str) -> None:
        if up != self._up:
            self._up = up
            self._metrics.redis_up.set(up)
            if up:
                logger.info("redis is up")
            else:
                logger.warning(
                    "redis is down (%s): embeddings are computed instead, and each gateway counts rate limits alone",
                    reason,
                )
