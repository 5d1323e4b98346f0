"""What Redis has of the cache, for operators: how much, how often it was of use, and its deletion.

On a cluster, every node is gone through. Keys are found by SCAN, which does not block a server as KEYS would.
"""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass

from autoglm.common.modalities import MediaKind
from autoglm.gateway.redis_address import RedisClient

PREFIX = "ag4"  # of the form of an entry; another form needs another
LOOKS_KEY = "ag-looks"  # a hash of what all gateways looked for in Redis, and found
BATCH = 500  # keys


@dataclass(frozen=True, slots=True)
class KindStats:
    """The entries of one modality, their bytes, and how often gateways looked in Redis for one, and found it."""

    entries: int
    bytes: int
    queries: int
    hits: int


def queries_field(kind: MediaKind) -> str:
    """Return the field of LOOKS_KEY that counts lookups."""
    return f"{kind}:queries"


def hits_field(kind: MediaKind) -> str:
    """Return the field of LOOKS_KEY that counts what was found."""
    return f"{kind}:hits"


async def stats(client: RedisClient, kind: MediaKind) -> KindStats:
    """Count the entries of a modality; raises one of FAILURES."""
    entries = size = 0
    async for keys in _batches(client, kind):
        pipeline = client.pipeline()
        for key in keys:
            pipeline.strlen(key)
        entries += len(keys)
        size += sum(await pipeline.execute())
    queries, hits = await client.hmget(LOOKS_KEY, [queries_field(kind), hits_field(kind)])
    return KindStats(entries, size, int(queries or 0), int(hits or 0))


async def clear(client: RedisClient, kinds: Collection[MediaKind]) -> int:
    """Delete the entries of some modalities and the counts of lookups for them; returns how many entries there were.

    Raises one of FAILURES.
    """
    deleted = 0
    for kind in kinds:
        async for keys in _batches(client, kind):
            deleted += await client.unlink(*keys)
        await client.hdel(LOOKS_KEY, queries_field(kind), hits_field(kind))
    return deleted


async def _batches(client: RedisClient, kind: MediaKind) -> AsyncIterator[list[bytes]]:
    batch: list[bytes] = []
    async for key in client.scan_iter(f"{PREFIX}:*:{kind}:*", count=BATCH):
        batch.append(key)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
