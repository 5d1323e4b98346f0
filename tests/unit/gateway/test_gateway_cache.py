"""The embedding cache: its three sources, once per key, and never the reason that a request fails."""

import asyncio
import hashlib
import math
from typing import Any

import pytest
import redis.asyncio
from pydantic import SecretStr

from autoglm.common.deadlines import Deadline
from autoglm.common.errors import DeadlineExceeded, MediaUnknown, MeshError, ModalityUnavailable
from autoglm.common.tensors import seal
from autoglm.gateway.media.cache import MAX_REDIS_BYTES, EmbeddingCache, Key, LocalTier, RedisTier, tenant_hash
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.redis_store import RedisStore
from autoglm.gateway.settings import Settings
from autoglm.v1.embedding_pb2 import ELEMENT_TYPE_BFLOAT16, Embedding
from autoglm.v1.generation_pb2 import CACHE_OUTCOME_LOCAL, CACHE_OUTCOME_MISS, CACHE_OUTCOME_SHARED
from autoglm.v1.modality_pb2 import MODALITY_IMAGE

from ...waiting import eventually_async, turns
from .conftest import Client, FakeMesh, Serve
from .samples import audio_part, image_part, png, wav


def key_of(name: str) -> Key:
    return Key("tenant", MODALITY_IMAGE, "r1", ELEMENT_TYPE_BFLOAT16, hashlib.sha256(name.encode()).digest())


def embedding_of(key: Key, tokens: int = 10) -> Embedding:
    return Embedding(
        modality=key.modality,
        encoder_revision=key.revision,
        tokens=seal(bytes(tokens * 2), (tokens, 1), key.element_type),
        media_sha256=key.sha256,
    )


def outcomes(body: Any) -> list[str]:
    return [stage["cache"] for stage in body["autoglm"]["stages"]["media"]]


async def ask(client: Client, *parts: Any, **fields: Any) -> list[str]:
    response = await client.chat(list(parts), **fields)
    assert response.status_code == 200, response.text
    return outcomes(response.json())


def test_a_key_names_everything_that_matters() -> None:
    digest = hashlib.sha256(b"a").hexdigest()
    assert str(key_of("a")) == f"ag4:tenant:image:r1:bf16:{digest}"


@pytest.mark.parametrize(
    ("shape", "grid", "fits"),
    [
        ((12, 1), (), True),
        ((12, 1), (2, 6), True),
        ((12, 1), (3, 4), True),
        ((12, 1), (2, 5), False),
        ((), (1,), False),
        ((12,), (), False),
        ((3, 4, 1), (), False),
    ],
)
def test_a_grid_has_as_many_cells_as_tokens(shape: tuple[int, ...], grid: tuple[int, ...], fits: bool) -> None:
    key = key_of("a")
    embedding = embedding_of(key)
    embedding.tokens.CopyFrom(seal(bytes(2 * math.prod(shape)), shape, key.element_type))
    embedding.grid.extend(grid)
    assert key.fits(embedding) is fits


def test_tenants_cannot_be_guessed() -> None:
    assert tenant_hash("s", "k1") != tenant_hash("s", "k2") != tenant_hash("other", "k2")
    assert tenant_hash("s", None) == tenant_hash("s", None)
    assert "k1" not in tenant_hash("s", "k1")


def test_the_least_recently_used_goes_first() -> None:
    keys = [key_of(name) for name in "abc"]
    size = embedding_of(keys[0]).ByteSize()
    tier = LocalTier(2 * size)
    for key in keys[:2]:
        tier.put(key, embedding_of(key))
    assert tier.get(keys[0]) is not None
    tier.put(keys[2], embedding_of(keys[2]))
    assert [tier.get(key) is not None for key in keys] == [True, False, True]
    assert tier.currsize == 2 * size


def test_what_is_larger_than_the_tier_is_not_kept() -> None:
    tier = LocalTier(100)
    tier.put(key_of("a"), embedding_of(key_of("a"), 1000))
    assert (tier.get(key_of("a")), tier.currsize) == (None, 0)


class Encoder:
    """An encoder that waits to be let go."""

    def __init__(self, key: Key) -> None:
        self.key, self.calls, self.cancelled = key, 0, 0
        self.entered, self.hold = asyncio.Event(), asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> Embedding:
        self.calls += 1
        self.entered.set()
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return embedding_of(self.key)


@pytest.fixture
def cache() -> EmbeddingCache:
    return EmbeddingCache(Settings(), GatewayMetrics())


async def settle(*tasks: asyncio.Task[Any]) -> None:
    """Let every task run until it waits."""
    await turns(5 * (len(tasks) + 1))


async def test_many_who_ask_for_the_same_share_one_encode(cache: EmbeddingCache) -> None:
    encode = Encoder(key_of("a"))
    tasks = [asyncio.create_task(cache.get(encode.key, encode, Deadline())) for _ in range(5)]
    await settle(*tasks)
    encode.hold.set()
    results = await asyncio.gather(*tasks)
    assert encode.calls == 1
    assert [outcome for _, outcome in results] == [CACHE_OUTCOME_MISS] + [CACHE_OUTCOME_SHARED] * 4
    assert (await cache.get(encode.key, encode, Deadline()))[1] == CACHE_OUTCOME_LOCAL


@pytest.mark.parametrize("leaver", [0, 1])
async def test_who_leaves_does_not_stop_the_others(cache: EmbeddingCache, leaver: int) -> None:
    encode = Encoder(key_of("a"))
    tasks = [asyncio.create_task(cache.get(encode.key, encode, Deadline())) for _ in range(2)]
    await settle(*tasks)
    tasks[leaver].cancel()
    await settle(*tasks)
    encode.hold.set()
    assert (await tasks[1 - leaver])[0] == embedding_of(encode.key)
    assert (encode.calls, encode.cancelled) == (1, 0)


async def test_the_last_who_leaves_stops_the_encoder_and_the_next_starts_anew(cache: EmbeddingCache) -> None:
    encode = Encoder(key_of("a"))
    tasks = [asyncio.create_task(cache.get(encode.key, encode, Deadline())) for _ in range(2)]
    await settle(*tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    newcomer = asyncio.create_task(cache.get(encode.key, encode, Deadline()))
    await settle(newcomer)
    encode.hold.set()
    assert (await newcomer)[0] == embedding_of(encode.key)
    assert (encode.calls, encode.cancelled) == (2, 1)


async def test_an_error_is_shared_and_not_kept(cache: EmbeddingCache) -> None:
    encode = Encoder(key_of("a"))
    encode.error = ModalityUnavailable("no")
    tasks = [asyncio.create_task(cache.get(encode.key, encode, Deadline())) for _ in range(3)]
    await settle(*tasks)
    encode.hold.set()
    assert all(isinstance(e, ModalityUnavailable) for e in await asyncio.gather(*tasks, return_exceptions=True))
    encode.error = None
    assert (await cache.get(encode.key, encode, Deadline()))[1] == CACHE_OUTCOME_MISS
    assert encode.calls == 2


@pytest.mark.parametrize("fault", [DeadlineExceeded("too late"), MediaUnknown("nothing is kept of it")])
async def test_what_is_a_requests_own_fault_does_not_fail_who_waits_with_it(
    cache: EmbeddingCache, fault: MeshError
) -> None:
    first, second = Encoder(key_of("a")), Encoder(key_of("a"))
    first.error = fault
    failing = asyncio.create_task(cache.get(first.key, first, Deadline()))
    waiting = asyncio.create_task(cache.get(second.key, second, Deadline()))
    await settle(failing, waiting)
    first.hold.set()
    second.hold.set()
    with pytest.raises(type(fault)):
        await failing
    assert (await waiting)[1] == CACHE_OUTCOME_MISS


async def test_a_waiters_own_deadline_counts(cache: EmbeddingCache) -> None:
    encode = Encoder(key_of("a"))
    patient = asyncio.create_task(cache.get(encode.key, encode, Deadline()))
    await settle(patient)
    with pytest.raises(DeadlineExceeded):
        await cache.get(encode.key, encode, Deadline.after(0.01))
    encode.hold.set()
    assert (await patient)[1] == CACHE_OUTCOME_MISS


async def test_the_second_request_hits_the_memory(client: Client, mesh: FakeMesh) -> None:
    parts = [image_part(png()), audio_part(wav())]
    assert await ask(client, *parts) == ["miss", "miss"]
    assert await ask(client, *parts) == ["local", "local"]
    assert len(mesh.vision.encode.requests) == len(mesh.speech.encode.requests) == 1
    first, second = mesh.decoder.generate.requests
    assert first.messages == second.messages


async def test_the_same_image_twice_in_one_request_is_encoded_once(client: Client, mesh: FakeMesh) -> None:
    assert sorted(await ask(client, image_part(png()), image_part(png()))) == ["miss", "shared"]
    assert len(mesh.vision.encode.requests) == 1


async def test_another_encoder_revision_is_another_entry(client: Client, mesh: FakeMesh) -> None:
    assert await ask(client, image_part(png())) == ["miss"]
    mesh.vision.revision = "r2"

    async def noticed() -> bool:
        return await ask(client, image_part(png())) == ["miss"]

    await eventually_async(noticed, "the gateway knows the new revision")
    revisions = {part.media.encoder_revision for part in mesh.decoder.generate.requests[-1].messages[0].parts}
    assert revisions == {"r2"}


async def test_two_gateways_share_redis(serve: Serve, mesh: FakeMesh, valkey: str) -> None:
    one, two = await serve(redis_url=valkey), await serve(redis_url=valkey)
    picture = image_part(png(colour="green"))
    assert await ask(one, picture) == ["miss"]
    async with redis.asyncio.Redis.from_url(valkey) as store:
        await stored(store)
    assert await ask(two, picture) == ["redis"]
    assert await ask(two, picture) == ["local"]
    assert len(mesh.vision.encode.requests) == 1
    assert (await one.http.get("/health/ready")).json()["dependencies"]["redis"] == "up"


async def test_a_modality_that_is_encoded_sooner_than_fetched_is_not_kept_in_redis(
    serve: Serve, mesh: FakeMesh, valkey: str
) -> None:
    one, two = [await serve(redis_url=valkey, redis_modalities="audio") for _ in range(2)]
    picture, recording = image_part(png(colour="green")), audio_part(wav())
    assert await ask(one, picture, recording) == ["miss", "miss"]
    async with redis.asyncio.Redis.from_url(valkey) as store:
        assert b":audio:" in await stored(store)
    assert await ask(two, picture, recording) == ["miss", "redis"]
    assert await ask(two, picture, recording) == ["local", "local"]


async def test_lookups_in_redis_are_counted_for_all_gateways(serve: Serve, valkey: str) -> None:
    one, two = [await serve(redis_url=valkey) for _ in range(2)]
    await ask(one, image_part(png(colour="green")))
    async with redis.asyncio.Redis.from_url(valkey) as store:
        await stored(store)
        await ask(two, image_part(png(colour="green")))
        await ask(two, image_part(png(colour="green")))  # which its own memory has

        async def counted() -> bool:
            found = [await store.hget("ag-looks", f"image:{count}") for count in ("queries", "hits")]
            return found == [b"2", b"1"]

        await eventually_async(counted, "both gateways have reported what they looked up")


async def test_entries_stored_together_expire_apart(valkey: str) -> None:
    store = RedisStore(Settings(redis_url=SecretStr(valkey), redis_timeout=10), GatewayMetrics())
    tier, keys = RedisTier(store, 10_000, "secret"), [key_of(str(number)) for number in range(50)]
    for key in keys:
        await tier.put(key, embedding_of(key))
    left = [await store.client.pttl(str(key)) for key in keys]
    assert 10_000_000 >= max(left) >= min(left) > 8_900_000
    assert max(left) - min(left) > 100_000
    await store.close()


async def test_an_embedding_that_would_block_redis_stays_in_memory(valkey: str) -> None:
    settings, metrics = Settings(redis_url=SecretStr(valkey), redis_timeout=10), GatewayMetrics()
    store = RedisStore(settings, metrics)
    tier, small, large = RedisTier(store, 60, "secret"), key_of("small"), key_of("large")
    await tier.put(small, embedding_of(small))
    await tier.put(large, embedding_of(large, MAX_REDIS_BYTES // 2))
    assert await tier.get(small) == embedding_of(small)
    assert await tier.get(large) is None
    assert store.up
    await store.close()


async def test_tenants_do_not_share(serve: Serve, mesh: FakeMesh, valkey: str) -> None:
    client = await serve(redis_url=valkey, api_keys="k1,k2")
    for key in ("k1", "k2"):
        client.http.headers["authorization"] = f"Bearer {key}"
        assert await ask(client, image_part(png(colour="yellow"))) == ["miss"]


async def stored(store: "redis.asyncio.Redis") -> bytes:
    """Wait for what a gateway stores after it has answered, and return its key."""
    keys: list[Any] = []

    async def there() -> bool:
        keys[:] = await store.keys("ag4:*")
        return bool(keys)

    await eventually_async(there, "the entry is stored")
    (key,) = keys
    assert isinstance(key, bytes)
    return key
