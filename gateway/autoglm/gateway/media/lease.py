"""Single flight across gateways: the one that holds the lease of a key in Redis has its embedding computed.

A lease ends by itself LEASE_SECONDS after its holder has died. Of the gateways that wait, one gets it then.
"""

import asyncio
from contextlib import suppress

from redis.asyncio.lock import Lock
from redis.exceptions import LockError

from autoglm.gateway.redis_store import RedisStore

LEASE_SECONDS = 2.0
RENEWALS = 4  # in that time


class Lease:
    """The lease of one key, as one gateway tries to get it."""

    def __init__(self, store: RedisStore, key: str) -> None:
        self._store = store
        self._lock = Lock(store.client, f"ag-lease:{key}", timeout=LEASE_SECONDS, thread_local=False)
        self._renewing: asyncio.Task[None] | None = None

    async def take(self) -> bool | None:
        """Return whether this gateway has the lease now, which it keeps until `release`; None if Redis cannot tell."""
        taken = await self._store.ask("lease an embedding", lambda: self._lock.acquire(blocking=False))
        if taken:
            self._renewing = asyncio.create_task(self._renew())
        return taken

    async def release(self) -> None:
        """Let another gateway have it."""
        if self._renewing is not None:
            self._renewing.cancel()
            await self._store.ask("release a lease", self._release)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / RENEWALS)
            await self._store.ask("renew a lease", self._reacquire)

    async def _reacquire(self) -> None:
        with suppress(LockError):  # it is another's, after this process was suspended
            await self._lock.reacquire()

    async def _release(self) -> None:
        with suppress(LockError):
            await self._lock.release()
