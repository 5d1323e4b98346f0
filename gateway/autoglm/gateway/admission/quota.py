"""Limits of each tenant: concurrent requests, and a rate limit in requests per minute.

Concurrent requests are counted in this process. The rate limit is a moving window of one minute in Redis, shared by all
gateways; without Redis, or while it fails, each gateway counts alone.

A request that is to be repeated with its media's bytes is given back: for the next minute the limit is one higher. At
most as many are given back in a minute as the limit allows, so that a client which never sends the bytes stays bounded.
"""

import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from limits import RateLimitItemPerMinute, WindowStats
from limits.aio.storage import MemoryStorage, MovingWindowSupport, RedisStorage

from autoglm.common.errors import RateLimited
from autoglm.gateway.context import Allowance, RequestContext, Tenant
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.redis_store import DamagedEntry, RedisStore

SECONDS = 60

T = TypeVar("T")


class Quota:
    """Counts the requests of each tenant and enforces its limits."""

    def __init__(self, store: RedisStore | None, metrics: GatewayMetrics) -> None:
        self._store, self._metrics = store, metrics
        self._running: Counter[str] = Counter()
        self._own = MemoryStorage()
        self._shared = None if store is None else _storage(store)

    @contextmanager
    def slot(self, tenant: Tenant) -> Iterator[None]:
        """Hold one of the tenant's concurrent requests; raises RateLimited when its limit is reached."""
        limit = tenant.max_concurrent_requests
        if limit and self._running[tenant.id] >= limit:
            self._metrics.rejected(tenant, "concurrent_requests")
            raise RateLimited(f"the limit of {limit} concurrent requests is reached; wait for one to finish")
        self._running[tenant.id] += 1
        try:
            yield
        finally:
            self._running[tenant.id] -= 1

    async def spend(self, context: RequestContext) -> None:
        """Count a request against the rate limit and record the rest in `context.allowance`.

        Raises RateLimited, with the time to wait, when nothing is left.
        """
        tenant = context.tenant
        if not tenant.requests_per_minute:
            return
        spent, window = await self._ask(tenant, lambda storage: _spend(storage, tenant))
        wait = max(0.0, window.reset_time - time.time())
        context.allowance = Allowance(tenant.requests_per_minute, max(0, window.remaining), wait)
        if not spent:
            self._metrics.rejected(tenant, "requests_per_minute")
            raise RateLimited(
                f"the limit of {tenant.requests_per_minute} requests per minute is reached; try again in {wait:.1f} s",
                retry_after=math.ceil(wait * 1000 + 1) / 1000,  # never a moment too early
            )

    async def give_back(self, tenant: Tenant) -> None:
        """Let a request that was counted be repeated without counting again."""
        if tenant.requests_per_minute:
            await self._ask(tenant, lambda storage: _give_back(storage, tenant))

    async def _ask(self, tenant: Tenant, count: Callable[[MovingWindowSupport], Awaitable[T]]) -> T:
        if self._store is not None and (shared := self._shared) is not None:
            answer = await self._store.ask("count a request", lambda: count(shared), lambda: _clear(shared, tenant))
            if answer is not None:
                return answer
        return await count(self._own)


async def _spend(storage: MovingWindowSupport, tenant: Tenant) -> tuple[bool, WindowStats]:
    rate = tenant.requests_per_minute
    _, given_back = await _window(storage, _key("GIVEN_BACK", tenant), rate)
    key, limit = _key("REQUESTS", tenant), rate + given_back
    spent = await storage.acquire_entry(key, limit, SECONDS)
    start, used = await _window(storage, key, limit)
    return spent, WindowStats(start + SECONDS, limit - used)


async def _window(storage: MovingWindowSupport, key: str, limit: int) -> tuple[float, int]:
    """Return when the oldest of the entries was counted, as a Unix time, and how many there are.

    Raises DamagedEntry for a time that no clock of a gateway shows: it would lock the tenant out until then.
    """
    start, used = await storage.get_moving_window(key, limit, SECONDS)
    if not start <= time.time() + SECONDS:  # also NaN
        raise DamagedEntry
    return start, used


async def _give_back(storage: MovingWindowSupport, tenant: Tenant) -> bool:
    return await storage.acquire_entry(_key("GIVEN_BACK", tenant), tenant.requests_per_minute, SECONDS)


async def _clear(storage: RedisStorage, tenant: Tenant) -> None:
    for window in ("REQUESTS", "GIVEN_BACK"):
        await storage.clear(_key(window, tenant))


def _key(window: str, tenant: Tenant) -> str:
    return RateLimitItemPerMinute(tenant.requests_per_minute, namespace=window).key_for(tenant.id)


def _storage(store: RedisStore) -> RedisStorage:
    options: Any = {"connection_pool": store.client.connection_pool}
    return RedisStorage("async+redis://", implementation="redispy", key_prefix="ag1", **options)
