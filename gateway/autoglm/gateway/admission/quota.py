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
from typing import TypeVar

from limits.aio.storage import MemoryStorage

from autoglm.common.errors import RateLimited
from autoglm.gateway.admission.windows import LocalWindows, RedisWindows, Windows
from autoglm.gateway.context import Allowance, RequestContext, Tenant
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.redis_store import RedisStore

T = TypeVar("T")


class Quota:
    """Counts the requests of each tenant and enforces its limits."""

    def __init__(self, store: RedisStore | None, metrics: GatewayMetrics) -> None:
        self._store, self._metrics = store, metrics
        self._running: Counter[str] = Counter()
        self._own = LocalWindows(MemoryStorage())
        self._shared = None if store is None else RedisWindows(store.client)

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
        spent, window = await self._ask(tenant, lambda windows: windows.spend(tenant))
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
            await self._ask(tenant, lambda windows: windows.give_back(tenant))

    async def _ask(self, tenant: Tenant, count: Callable[[Windows], Awaitable[T]]) -> T:
        if self._store is not None and (shared := self._shared) is not None:
            answer = await self._store.ask("count a request", lambda: count(shared), lambda: shared.clear(tenant))
            if answer is not None:
                return answer
        return await count(self._own)
