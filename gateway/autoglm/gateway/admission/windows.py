"""The moving windows behind the rate limit: the requests of a tenant in the last minute, and those given back.

In this process `limits` keeps both. In Redis they are lists as `limits` keeps them there, but one script counts a
request, so that it costs one round trip: `limits` itself asks three times.
"""

import time
from collections.abc import Sequence
from typing import Any, Protocol

from limits import WindowStats
from limits.aio.storage import MovingWindowSupport

from autoglm.gateway.context import Tenant
from autoglm.gateway.redis_address import RedisClient
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

# KEYS: those given back. ARGV: as above. Returns whether one more was given back (1 or 0).
GIVE_BACK = """
local last = redis.call('LINDEX', KEYS[1], ARGV[2] - 1)
if last and tonumber(last) >= tonumber(ARGV[1]) - tonumber(ARGV[3]) then return 0 end
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], 0, ARGV[2] - 1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""


class Windows(Protocol):
    """The windows of all tenants."""

    async def spend(self, tenant: Tenant) -> tuple[bool, WindowStats]:
        """Count a request if the limit allows it. Returns whether it does, and what is left until when."""

    async def give_back(self, tenant: Tenant) -> bool:
        """Raise the limit by one for a minute. Returns whether it could be; it is at most doubled."""


class LocalWindows(Windows):
    """The windows of one process."""

    def __init__(self, storage: MovingWindowSupport) -> None:
        self._storage = storage

    async def spend(self, tenant: Tenant) -> tuple[bool, WindowStats]:
        rate = tenant.requests_per_minute
        _, given_back = await self._storage.get_moving_window(_given_back(tenant), rate, SECONDS)
        key, limit = _requests(tenant), rate + given_back
        spent = await self._storage.acquire_entry(key, limit, SECONDS)
        start, used = await self._storage.get_moving_window(key, limit, SECONDS)
        return spent, WindowStats(start + SECONDS, limit - used)

    async def give_back(self, tenant: Tenant) -> bool:
        return await self._storage.acquire_entry(_given_back(tenant), tenant.requests_per_minute, SECONDS)


class RedisWindows(Windows):
    """The windows that gateways share. The keys of a tenant have a hash tag: a cluster keeps them on one node."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._spend, self._give_back = client.register_script(SPEND), client.register_script(GIVE_BACK)

    async def spend(self, tenant: Tenant) -> tuple[bool, WindowStats]:
        """Count a request if the limit allows it. Raises DamagedEntry for times that no gateway's clock shows."""
        rate = tenant.requests_per_minute
        keys = [_requests(tenant), _given_back(tenant)]
        counted: Sequence[Any] = await self._spend(keys, [time.time(), rate, SECONDS])
        spent, start, used, given_back_start, given_back = counted
        for since in (start, given_back_start):
            if not float(since) <= time.time() + SECONDS:  # it would lock the tenant out until then; also NaN
                raise DamagedEntry
        return bool(spent), WindowStats(float(start) + SECONDS, rate + given_back - used)

    async def give_back(self, tenant: Tenant) -> bool:
        given_back = await self._give_back([_given_back(tenant)], [time.time(), tenant.requests_per_minute, SECONDS])
        return bool(given_back)

    async def clear(self, tenant: Tenant) -> None:
        """Forget what was counted."""
        await self._client.delete(_requests(tenant), _given_back(tenant))


def _requests(tenant: Tenant) -> str:
    return _key("requests", tenant)


def _given_back(tenant: Tenant) -> str:
    return _key("given_back", tenant)


def _key(window: str, tenant: Tenant) -> str:
    return f"{PREFIX}:{{{tenant.id}}}:{window}:{tenant.requests_per_minute}"
