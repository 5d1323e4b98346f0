"""The Redis or Valkey that gateways share, behind a circuit breaker: its failures never fail a request."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from autoglm.gateway.circuit_breaker import CircuitBreaker
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.redis_address import FAILURES, close, parse
from autoglm.gateway.settings import Settings

logger = logging.getLogger("autoglm.gateway.redis_store")

# A refusal with one code, or a damaged entry, is logged again only after this many seconds without another.
QUIET_SECONDS = 60.0
# More commands than this at a time wait: each takes a connection, and well under a millisecond of the server.
MAX_CONNECTIONS = 64
FAILURES_TO_OPEN = 3

T = TypeVar("T")


class DamagedEntry(Exception):
    """A key of Redis contains what no gateway stored there."""


class RedisStore:
    """A connection that never raises.

    Circuit breaker: FAILURES_TO_OPEN commands in a row that met silence or a broken connection open it for
    `redis_backoff` seconds, in which every request goes on without Redis at once instead of waiting for a timeout. The
    first request after that tries again, alone. So it is too while Sentinel or a cluster replaces a master. An error
    reply does not open it: a server that is full or read-only still answers what it can. Nor does a burst: commands
    wait for a connection, which is no fault of the server.
    """

    def __init__(self, settings: Settings, metrics: GatewayMetrics) -> None:
        self._timeout = settings.redis_timeout
        self._breaker = CircuitBreaker(FAILURES_TO_OPEN, settings.redis_backoff)
        self._connections = asyncio.Semaphore(MAX_CONNECTIONS)
        self._metrics = metrics
        metrics.uses_redis(lambda: not self._breaker.closed)
        self._up: bool | None = None
        self._last_seen: dict[str, float] = {}
        self.client = parse(settings.redis_url.get_secret_value()).client(self._timeout, MAX_CONNECTIONS)

    @property
    def up(self) -> bool:
        """Whether the server answered the last command, be it by refusing it."""
        return bool(self._up)

    async def ask(
        self, purpose: str, command: Callable[[], Awaitable[T]], drop: Callable[[], Awaitable[object]] | None = None
    ) -> T | None:
        """Return the result of `command`, or None while Redis is down, slow or refuses it.

        If what `command` finds is damaged, `drop` is run, which deletes it. `purpose` is for the log, such as "store an
        embedding".
        """
        async with self._connections:
            with self._breaker.admit() as admitted:
                if not admitted:
                    return None
                try:
                    async with asyncio.timeout(self._timeout):
                        answer = await command()
                except (*FAILURES, TimeoutError, ValueError, DamagedEntry) as error:
                    failure: Exception = error
                else:
                    self._answered()
                    return answer
                self._failed(purpose, failure)
        if drop is not None and _tells_of_damage(failure):
            self._damaged(purpose)
            await self.ask("delete a damaged entry", drop)
        return None

    def _answered(self) -> None:
        self._breaker.succeed()
        self._record(True, "")

    def _failed(self, purpose: str, error: Exception) -> None:
        self._metrics.redis_errors.labels(_reason(error)).inc()
        if isinstance(error, DamagedEntry | ResponseError):
            self._answered()
            if not _tells_of_damage(error):
                self._refused(purpose, error)
        elif isinstance(error, AuthenticationError | AuthorizationError | BusyLoadingError):
            self._record(False, _code(error))  # refuses everything, but at once: nobody waits for it
        else:  # a ValueError says that what came is no reply of a Redis
            self._breaker.fail()
            self._record(self.up and self._breaker.closed, type(error).__name__)

    async def ping(self) -> None:
        """Update `up`."""
        await self.ask("ping", lambda: self.client.ping())

    async def close(self) -> None:
        """Close the connections."""
        await close(self.client)

    def _damaged(self, purpose: str) -> None:
        self._metrics.damaged_redis_entries.inc()
        if self._is_new(f"a damaged entry: {purpose}"):
            logger.warning(
                "an attempt to %s found a damaged or foreign entry in redis, which is dropped;"
                " autoglm_redis_damaged_entries_total counts further ones",
                purpose,
            )

    def _refused(self, purpose: str, error: Exception) -> None:
        if self._is_new(code := _code(error)):
            logger.warning("redis refuses commands (%s), such as to %s; requests go on without", code, purpose)

    def _is_new(self, event: str) -> bool:
        now, last = time.monotonic(), self._last_seen.get(event, -math.inf)
        self._last_seen[event] = now
        return now - last > QUIET_SECONDS

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


def _tells_of_damage(error: Exception) -> bool:
    """Return whether a key has the wrong type, or a script found something else than a number in it.

    Scripts report both inside messages that differ between versions of the server.
    """
    return isinstance(error, DamagedEntry) or "WRONGTYPE" in str(error) or "attempt to compare" in str(error)


def _reason(error: Exception) -> str:
    """Return one of REDIS_FAILURES."""
    if _tells_of_damage(error):
        return "damaged"
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "timeout"
    is_refused = isinstance(error, ResponseError | AuthenticationError | AuthorizationError | BusyLoadingError)
    return "refused" if is_refused else "connection"


def _code(error: Exception) -> str:
    """Return the code of an error reply, such as OOM. The rest of the message can contain keys and names of users."""
    code = getattr(error, "status_code", None) or str(error).partition(" ")[0]
    return code if code.isalpha() and code.isupper() and len(code) <= 20 else type(error).__name__
