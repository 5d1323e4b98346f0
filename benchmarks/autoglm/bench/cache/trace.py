"""A trace of pictures asked for with Zipf's frequencies, on several gateways with one Redis: hits and memory."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from pydantic import SecretStr

from autoglm.common.deadlines import Deadline
from autoglm.common.tensors import seal
from autoglm.gateway.media.cache import EmbeddingCache, Key
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.redis_address import RedisClient
from autoglm.gateway.redis_store import RedisStore
from autoglm.gateway.settings import Settings
from autoglm.v1.embedding_pb2 import ELEMENT_TYPE_BFLOAT16, Embedding
from autoglm.v1.generation_pb2 import (
    CACHE_OUTCOME_LOCAL,
    CACHE_OUTCOME_MISS,
    CACHE_OUTCOME_REDIS,
    CACHE_OUTCOME_SHARED,
)
from autoglm.v1.modality_pb2 import MODALITY_IMAGE

TOKENS, WIDTH = 49, 320  # of a picture, as the nano bundle encodes it in bfloat16
TOKEN_BYTES = TOKENS * WIDTH * 2
AT_ONCE = 16  # requests
BUFFER_BYTES = 2 * 1024 * 1024  # of the server, for connections
OVERHEAD = 1.1  # of an entry in the server


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """What one run allows: the share of all pictures that a gateway keeps, and the share that Redis keeps."""

    local: float
    redis: float


SIZES = (CacheSizes(0.1, 0), CacheSizes(0, 1), CacheSizes(0.1, 0.5), CacheSizes(0.1, 1), CacheSizes(0.5, 1))
EXPONENTS = (0.8, 1.1)


@dataclass(frozen=True, slots=True)
class ZipfConfig:
    """How many gateways, different pictures and requests for them; the first tenth of these only fills the caches."""

    gateways: int = 3
    pictures: int = 2000
    requests: int = 20_000
    seed: int = 0

    @classmethod
    def of(cls, quick: bool) -> "ZipfConfig":
        """Return the whole configuration or a quick one."""
        return replace(cls(), pictures=200, requests=2000) if quick else cls()


@dataclass(frozen=True, slots=True)
class TraceResult:
    """Shares of the requests by where their embedding came from, and the memory that it took, in MB."""

    exponent: float
    sizes: CacheSizes
    local: float
    shared: float
    redis: float
    encoded: float
    mb_per_gateway: float
    redis_mb: float


async def run(url: str, config: ZipfConfig, exponent: float, sizes: CacheSizes) -> TraceResult:
    """Send the trace through caches of these sizes, which begin empty."""
    whole = config.pictures * TOKEN_BYTES
    settings = Settings(redis_url=SecretStr(url), redis_timeout=10, cache_bytes=int(sizes.local * whole))
    stores = [RedisStore(settings, GatewayMetrics()) for _ in range(config.gateways)]
    await stores[0].client.execute_command("FLUSHALL SYNC")
    at_start = await _used(stores[0].client)
    await stores[0].client.config_set("maxmemory", int(at_start + BUFFER_BYTES + sizes.redis * whole * OVERHEAD))
    caches = [EmbeddingCache(settings, GatewayMetrics(), store if sizes.redis else None) for store in stores]
    outcomes = await _sent(caches, config, exponent)
    for cache in caches:
        await cache.close()
    redis_mb = (await _used(stores[0].client) - at_start) / 1e6
    for store in stores:
        await store.close()
    shares = {outcome: count / outcomes.total() for outcome, count in outcomes.items()}
    return TraceResult(
        exponent,
        sizes,
        local=shares.get(CACHE_OUTCOME_LOCAL, 0),
        shared=shares.get(CACHE_OUTCOME_SHARED, 0),
        redis=shares.get(CACHE_OUTCOME_REDIS, 0),
        encoded=shares.get(CACHE_OUTCOME_MISS, 0),
        mb_per_gateway=sum(cache.local.currsize for cache in caches) / len(caches) / 1e6,
        redis_mb=max(0.0, redis_mb),
    )


async def _sent(caches: Sequence[EmbeddingCache], config: ZipfConfig, exponent: float) -> Counter[int]:
    draw = random.Random(config.seed)
    weights = list(accumulate((rank + 1) ** -exponent for rank in range(config.pictures)))
    trace = draw.choices(range(config.pictures), cum_weights=weights, k=config.requests)
    outcomes, warm_up = Counter[int](), config.requests // 10
    for first in range(0, len(trace), AT_ONCE):
        work = [_asked(draw.choice(caches), picture) for picture in trace[first : first + AT_ONCE]]
        found = await asyncio.gather(*work)
        if first >= warm_up:
            outcomes.update(found)
    return outcomes


async def _asked(cache: EmbeddingCache, picture: int) -> int:
    key = Key("bench", MODALITY_IMAGE, "r1", ELEMENT_TYPE_BFLOAT16, picture.to_bytes(32, "big"))

    async def encode() -> Embedding:
        tokens = seal(random.Random(picture).randbytes(TOKEN_BYTES), (TOKENS, WIDTH), key.element_type)
        return Embedding(modality=key.modality, encoder_revision=key.revision, tokens=tokens, media_sha256=key.sha256)

    _, outcome = await cache.get(key, encode, Deadline())
    return outcome


async def _used(client: RedisClient) -> int:
    """Return the bytes that the server holds."""
    return int((await client.info("memory"))["used_memory"])
