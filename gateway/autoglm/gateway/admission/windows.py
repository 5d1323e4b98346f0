"""The moving windows behind the rate limit: the requests of a tenant in the last minute, and those given back.

Both are lists as `limits` keeps them, in this process or in Redis. There a request is counted by one script, so that it
costs one round trip: `limits` itself asks three times.
"""

import time
from collections.abc import Sequence
from typing import Any

import redis.asyncio
from limits import RateLimitItemPerMinute, WindowStats
from limits.aio.storage import MovingWindowSupport, RedisStorage

from autoglm.gateway.context import Tenant
from autoglm.gateway.redis_store import DamagedEntry

SECONDS = 60
PREFIX = "ag1"

# KEYS: the requests, those given back; each a list of times, the latest first. ARGV: now, the limit, the seconds of a
# window. Returns whether the request was counted (1 or 0), then of both windows the oldest time and their number.
SPEND = """
local first = tonumber(ARGV[1]) - tonumber(ARGV[3])

local function time_at(key, index)
    return redis.call('LINDEX', key, index)
end

local function window(key, most)
    local count, beyond = 0, most  -- what is before `count` is in the window, what is from `beyond` on is not
    while count < beyond do
        local middle = math.floor((count + beyond) / 2)
        local at = tonumber(time_at(key, middle))
        if at and at >= first then count = middle + 1 else beyond = middle end
    end
    if count == 0 then return ARGV[1], 0 end
    return tostring(tonumber(time_at(key, count - 1))), count
end

local given_back_since, given_back = window(KEYS[2], tonumber(ARGV[2]))
local limit = tonumber(ARGV[2]) + given_back
local last = time_at(KEYS[1], limit - 1)
local spent = 0
if not last or tonumber(last) < first then
    redis.call('LPUSH', KEYS[1], ARGV[1])
    redis.call('LTRIM', KEYS[1], 0, limit - 1)
    redis.call('EXPIRE', KEYS[1], ARGV[3])
    spent = 1
end
local since, used = window(KEYS[1], limit)
return {spent, since, used, given_back_since, given_back}
"""


class Windows:
    """The windows of all tenants in one storage."""

    def __init__(self, storage: MovingWindowSupport) -> None:
        self._storage = storage

    async def spend(self, tenant: Tenant) -> tuple[bool, WindowStats]:
        """Count a request if the limit allows it. Returns whether it does, and what is left until when."""
        rate = tenant.requests_per_minute
        _, given_back = await self._storage.get_moving_window(_given_back(tenant), rate, SECONDS)
        key, limit = _requests(tenant), rate + given_back
        spent = await self._storage.acquire_entry(key, limit, SECONDS)
        start, used = await self._storage.get_moving_window(key, limit, SECONDS)
        return spent, WindowStats(start + SECONDS, limit - used)

    async def give_back(self, tenant: Tenant) -> bool:
        """Raise the limit by one for a minute. Returns whether it could be; it is at most doubled."""
        return await self._storage.acquire_entry(_given_back(tenant), tenant.requests_per_minute, SECONDS)


class RedisWindows(Windows):
    """The windows that gateways share."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        options: Any = {"connection_pool": client.connection_pool}
        self._shared = RedisStorage("async+redis://", implementation="redispy", key_prefix=PREFIX, **options)
        self._script = client.register_script(SPEND)
        super().__init__(self._shared)

    async def spend(self, tenant: Tenant) -> tuple[bool, WindowStats]:
        """Count a request if the limit allows it. Raises DamagedEntry for times that no gateway's clock shows."""
        rate, keys = tenant.requests_per_minute, [f"{PREFIX}:{key(tenant)}" for key in (_requests, _given_back)]
        counted: Sequence[Any] = await self._script(keys, [time.time(), rate, SECONDS])
        spent, start, used, given_back_start, given_back = counted
        for since in (start, given_back_start):
            if not float(since) <= time.time() + SECONDS:  # it would lock the tenant out until then; also NaN
                raise DamagedEntry
        return bool(spent), WindowStats(float(start) + SECONDS, rate + given_back - used)

    async def clear(self, tenant: Tenant) -> None:
        """Forget what was counted."""
        for key in (_requests, _given_back):
            await self._shared.clear(key(tenant))


def _requests(tenant: Tenant) -> str:
    return _key("REQUESTS", tenant)


def _given_back(tenant: Tenant) -> str:
    return _key("GIVEN_BACK", tenant)


def _key(window: str, tenant: Tenant) -> str:
    return RateLimitItemPerMinute(tenant.requests_per_minute, namespace=window).key_for(tenant.id)
