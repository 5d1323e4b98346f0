"""The embedding cache: this process's memory, then Redis, then the encoder, with single flight per key.

Single flight: however many requests ask for a key at the same time, it is looked up and computed once: in a gateway
they share a flight, and gateways that share Redis a lease. What an encoder refuses as invalid is refused again for a
short while without asking it. The cache never makes a request fail: when Redis is down, slow, refuses a command or
returns damaged data, the encoder computes the embedding. Whoever can write to Redis but does not know the secret can
neither change an embedding nor put it under another key: everything that an entry says is under a checksum keyed with
the secret.
"""

import asyncio
import hashlib
import hmac
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache, TTLCache
from google.protobuf.message import DecodeError
from google.rpc import code_pb2

from autoglm.common.deadlines import Deadline
from autoglm.common.errors import DeadlineExceeded, MediaUnknown, MeshError
from autoglm.common.modalities import BY_NUMBER, MODALITY_NAMES
from autoglm.common.tensors import TensorError, check
from autoglm.gateway.media.lease import Lease
from autoglm.gateway.media.redis_entries import LOOKS_KEY, PREFIX, hits_field, queries_field
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.redis_store import DamagedEntry, RedisStore
from autoglm.gateway.settings import Settings
from autoglm.v1.embedding_pb2 import (
    ELEMENT_TYPE_BFLOAT16,
    ELEMENT_TYPE_FLOAT16,
    ELEMENT_TYPE_FLOAT32,
    ElementType,
    Embedding,
)
from autoglm.v1.generation_pb2 import (
    CACHE_OUTCOME_LOCAL,
    CACHE_OUTCOME_MISS,
    CACHE_OUTCOME_REDIS,
    CACHE_OUTCOME_SHARED,
    CacheOutcome,
)
from autoglm.v1.modality_pb2 import Modality

# A larger embedding, of minutes of sound, may not reach Redis within `redis_timeout`, which counts as a failure.
MAX_REDIS_BYTES = 4 * 1024 * 1024

MAC_BYTES = 32  # HMAC-SHA-256

# Embeddings that were stored at the same time, as when a fleet of phones was switched on, expire apart.
TTL_SHARE = (0.9, 1.0)

MAX_REFUSALS = 1024  # of about 1 kB each

# While another gateway computes an embedding, how often to look for it, and how long at most.
FIRST_POLL_SECONDS, POLL_SECONDS, MAX_WAIT_SECONDS = 0.01, 0.1, 10.0

DTYPES: dict[int, str] = {ELEMENT_TYPE_BFLOAT16: "bf16", ELEMENT_TYPE_FLOAT16: "fp16", ELEMENT_TYPE_FLOAT32: "fp32"}

Encode = Callable[[], Awaitable[Embedding]]


def tenant_hash(secret: str, key: str | None) -> str:
    """Return the tenant part of cache keys for the key or name that identifies a tenant. Without the secret, no one can
    work out another tenant's."""
    return hmac.new(secret.encode(), (key or "anonymous").encode(), hashlib.sha256).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Key:
    """Everything that two requests must have in common to share an embedding."""

    tenant: str
    modality: Modality.ValueType
    revision: str
    element_type: ElementType.ValueType
    sha256: bytes

    def __str__(self) -> str:
        kind, dtype = MODALITY_NAMES[self.modality], DTYPES.get(self.element_type, "other")
        return f"{PREFIX}:{self.tenant}:{kind}:{self.revision}:{dtype}:{self.sha256.hex()}"

    def fits(self, embedding: Embedding) -> bool:
        """Return whether `embedding` has undamaged tokens [tokens, width] and belongs to this key.

        A grid must have as many cells as there are tokens: 2 × 6 and 3 × 4 have equal bytes and other positions.
        """
        try:
            check(embedding.tokens)
        except TensorError:
            return False
        return (
            len(embedding.tokens.shape) == 2
            and embedding.modality == self.modality
            and embedding.encoder_revision == self.revision
            and embedding.tokens.element_type == self.element_type
            and embedding.media_sha256 == self.sha256
            and _grid_fits(embedding)
        )


def _grid_fits(embedding: Embedding) -> bool:
    """Return whether the grid of `embedding`, if it has one, has as many cells as there are tokens."""
    return not embedding.grid or [math.prod(embedding.grid)] == embedding.tokens.shape[:1]


class LocalTier(LRUCache[Key, Embedding]):
    """The most recently used embeddings in this process, limited to `max_bytes`."""

    def __init__(self, max_bytes: int, evicted: Callable[[], None] = lambda: None) -> None:
        """Call `evicted` for each embedding that makes room."""
        super().__init__(max_bytes, getsizeof=Embedding.ByteSize)
        self._evicted = evicted

    def popitem(self) -> tuple[Key, Embedding]:
        """Remove the embedding that has not been used for the longest time."""
        self._evicted()
        return super().popitem()

    def put(self, key: Key, embedding: Embedding) -> None:
        """Keep the embedding, unless it alone exceeds the limit."""
        if embedding.ByteSize() <= self.maxsize:
            self[key] = embedding


class RedisTier:
    """Embeddings that gateways with the same Redis and secret share. While Redis fails, it is as good as empty.

    An entry is the serialized embedding after the HMAC of the entry's key and the embedding. With an empty secret, that
    finds damage and misplaced entries, but anyone can make it.
    """

    def __init__(self, store: RedisStore, ttl: int, secret: str) -> None:
        self._store, self._ttl, self._secret = store, ttl, secret.encode()
        self._looks = Counter[str]()

    async def get(self, key: Key) -> Embedding | None:
        """Return the embedding; a damaged or foreign one is deleted and counts as absent."""
        client = self._store.client
        return await self._store.ask("read an embedding", lambda: self._read(key), lambda: client.delete(str(key)))

    async def put(self, key: Key, embedding: Embedding) -> None:
        """Store the embedding for about the configured time, unless it is too large to be sent in time."""
        if embedding.ByteSize() > MAX_REDIS_BYTES:
            return
        serialized = embedding.SerializeToString()
        entry = self._mac(key, serialized) + serialized
        ttl = math.ceil(self._ttl * random.uniform(*TTL_SHARE))
        await self._store.ask("store an embedding", lambda: self._store.client.set(str(key), entry, ex=ttl))

    def lease(self, key: Key) -> Lease:
        """Return the lease of the right to compute the embedding of `key`, to be taken."""
        return Lease(self._store, str(key))

    def looked_up(self, key: Key, hit: bool) -> None:
        """Count one lookup, for the next report."""
        kind = BY_NUMBER[key.modality].kind
        self._looks.update({queries_field(kind): 1, hits_field(kind): int(hit)})

    async def report(self) -> None:
        """Add the lookups since the last report to those of all gateways, which `autoglm cache stats` shows."""
        looks, self._looks = self._looks, Counter()
        if looks and await self._store.ask("count lookups", lambda: self._add(looks), self._forget_looks) is None:
            self._looks += looks

    async def _add(self, looks: Mapping[str, int]) -> Sequence[int]:
        pipeline = self._store.client.pipeline()
        for field, count in looks.items():
            pipeline.hincrby(LOOKS_KEY, field, count)
        added: Sequence[int] = await pipeline.execute()
        return added

    async def _forget_looks(self) -> None:
        await self._store.client.delete(LOOKS_KEY)

    async def _read(self, key: Key) -> Embedding | None:
        """Return the embedding, or None if there is none; raises DamagedEntry. What is too large is not read whole."""
        entry = await self._store.client.getrange(str(key), 0, MAC_BYTES + MAX_REDIS_BYTES)
        if not isinstance(entry, bytes) or not entry:  # without the key it is empty
            return None
        mac, serialized = entry[:MAC_BYTES], entry[MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(key, serialized)):
            raise DamagedEntry
        try:
            embedding = Embedding.FromString(serialized)
        except DecodeError:
            raise DamagedEntry from None
        if not key.fits(embedding):
            raise DamagedEntry
        return embedding

    def _mac(self, key: Key, serialized: bytes) -> bytes:
        mac = hmac.new(self._secret, str(key).encode() + b"\0", hashlib.sha256)
        mac.update(serialized)
        return mac.digest()


@dataclass(slots=True)
class _Flight:
    """One lookup in progress, shared by the requests that wait for it."""

    task: asyncio.Task[tuple[Embedding, CacheOutcome.ValueType]]
    waiters: int = 0


class EmbeddingCache:
    """Looks in each tier, and has a missing embedding computed once (single flight)."""

    def __init__(self, settings: Settings, metrics: GatewayMetrics, store: RedisStore | None = None) -> None:
        self.local = local = LocalTier(settings.cache_bytes, metrics.cache_evictions.inc)
        metrics.watch_cache(lambda: local.currsize, lambda: len(local))
        secret = settings.cache_secret.get_secret_value()
        self.redis = None if store is None else RedisTier(store, settings.cache_ttl, secret)
        self._in_redis = settings.redis_modality_numbers
        self._refusals: TTLCache[Key, MeshError] = TTLCache(MAX_REFUSALS, settings.cache_refusal_ttl)
        self._metrics = metrics
        self._flights: dict[Key, _Flight] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def get(
        self, key: Key, encode: Encode, deadline: Deadline, *, has_bytes: bool = True
    ) -> tuple[Embedding, CacheOutcome.ValueType]:
        """Return the embedding of `key` and where it came from; raises what `encode` raises, or DeadlineExceeded.

        Without `has_bytes` there is nothing to encode, so that no other gateway should wait for this one.
        """
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await self._get(key, encode, has_bytes)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while media was being encoded; allow more time") from None

    async def run(self, interval: float) -> None:
        """Report lookups in Redis every `interval` seconds, until cancelled."""
        while self.redis is not None:
            await asyncio.sleep(interval)
            await self.redis.report()

    async def close(self) -> None:
        """Wait for embeddings that are being stored and leases that are being released, and report the last lookups."""
        await asyncio.gather(*self._background)
        if self.redis is not None:
            await self.redis.report()

    async def _get(self, key: Key, encode: Encode, has_bytes: bool) -> tuple[Embedding, CacheOutcome.ValueType]:
        embedding = self.local.get(key)
        self._metrics.looked_up(key.modality, "local", embedding is not None)
        if embedding is not None:
            return embedding, CACHE_OUTCOME_LOCAL
        if (refusal := self._refusals.get(key)) is not None:
            raise refusal.at("")  # a copy: what is raised again and again would grow
        while flight := self._flights.get(key):
            try:
                return (await self._join(key, flight))[0], CACHE_OUTCOME_SHARED
            except (DeadlineExceeded, MediaUnknown):
                # The request that started the lookup ran out of time, or sent no bytes; this one did not: its own
                # deadline would be a TimeoutError.
                continue
        flight = self._flights[key] = _Flight(asyncio.create_task(self._look_up(key, encode, has_bytes)))
        return await self._join(key, flight)

    async def _join(self, key: Key, flight: _Flight) -> tuple[Embedding, CacheOutcome.ValueType]:
        """Wait for `flight`. The last waiter to leave cancels it; after that no one can join it."""
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 or flight.task.done():
                flight.task.cancel()
                if self._flights.get(key) is flight:
                    del self._flights[key]

    async def _look_up(self, key: Key, encode: Encode, has_bytes: bool) -> tuple[Embedding, CacheOutcome.ValueType]:
        if self.redis is None or key.modality not in self._in_redis:
            return await self._encode(key, encode), CACHE_OUTCOME_MISS
        with self._metrics.cache_lookup.time():
            found = await self.redis.get(key)
        self._metrics.looked_up(key.modality, "redis", found is not None)
        self.redis.looked_up(key, found is not None)
        if found is not None:
            self.local.put(key, found)
            return found, CACHE_OUTCOME_REDIS
        if not has_bytes:
            return await encode(), CACHE_OUTCOME_MISS  # which says so
        return await self._encode_once(key, encode, self.redis)

    async def _encode_once(self, key: Key, encode: Encode, tier: RedisTier) -> tuple[Embedding, CacheOutcome.ValueType]:
        """Have the embedding computed and stored, unless another gateway is about to."""
        lease = tier.lease(key)
        try:
            found = await _from_another(key, lease, tier)
            if found is not None:
                self.local.put(key, found)
                self._in_background(lease.release())
                return found, CACHE_OUTCOME_SHARED
            embedding = await self._encode(key, encode)
        except BaseException:
            self._in_background(lease.release())
            raise
        self._in_background(_store_and_release(key, embedding, lease, tier))
        return embedding, CACHE_OUTCOME_MISS

    async def _encode(self, key: Key, encode: Encode) -> Embedding:
        """Return what the encoder returns, and remember it or its refusal of the media."""
        try:
            embedding = await encode()
        except MeshError as error:
            if error.grpc_code == code_pb2.INVALID_ARGUMENT:
                self._refusals[key] = error.at("")
            raise
        if key.fits(embedding):  # not that of an encoder that was just replaced, which has another revision
            self.local.put(key, embedding)
        return embedding

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _from_another(key: Key, lease: Lease, tier: RedisTier) -> Embedding | None:
    """Return the embedding that another gateway stores, or None once this gateway is to have it computed.

    It is when it has the lease, when Redis does not tell, or when the other takes longer than MAX_WAIT_SECONDS.
    """
    pause, limit = FIRST_POLL_SECONDS, time.monotonic() + MAX_WAIT_SECONDS
    while (taken := await lease.take()) is False and time.monotonic() < limit:
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        if (found := await tier.get(key)) is not None:
            return found
        pause = min(2 * pause, POLL_SECONDS)
    # Between the last look and the lease, its last holder may have stored it.
    return await tier.get(key) if taken else None


async def _store_and_release(key: Key, embedding: Embedding, lease: Lease, tier: RedisTier) -> None:
    if key.fits(
        embedding
    ):  # an encoder that was just replaced sends another revision, which is valid but not this key's
        await tier.put(key, embedding)
    await lease.release()
