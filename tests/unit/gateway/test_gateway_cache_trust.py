"""What somebody else writes to Redis is never believed, and what Redis refuses never fails a request."""

import asyncio
import contextlib
import hmac
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from pydantic import SecretStr

from autoglm.common.tensors import seal
from autoglm.gateway.media.cache import MAC_BYTES, MAX_REDIS_BYTES, Key, RedisTier
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.redis_store import FAILURES_TO_OPEN, RedisStore
from autoglm.gateway.settings import Settings
from autoglm.v1.embedding_pb2 import ELEMENT_TYPE_FLOAT16, Embedding
from autoglm.v1.modality_pb2 import MODALITY_AUDIO

from ...waiting import eventually_async
from .conftest import Client, FakeMesh, Serve
from .samples import audio_part, image_part, png, wav
from .test_gateway_cache import ask, embedding_of, key_of, stored
from .test_gateway_limits import ask as ask_limited
from .test_gateway_limits import limited

__all__ = ["limited"]

LOGGER = "autoglm.gateway.redis_store"


def spoken(key: Key) -> Embedding:
    """An embedding that says as much as one can: a map with a transcript."""
    embedding = embedding_of(key, 12)
    embedding.tokens.data = bytes(range(24))
    embedding.tokens.CopyFrom(seal(embedding.tokens.data, (12, 1), key.element_type))
    embedding.grid.extend([3, 4])
    embedding.transcript = "打开微信"
    return embedding


@contextlib.asynccontextmanager
async def tier_of(url: str, secret: str = "secret") -> AsyncIterator[tuple[RedisTier, RedisStore, GatewayMetrics]]:
    metrics = GatewayMetrics()
    store = RedisStore(Settings(redis_url=SecretStr(url), redis_timeout=5), metrics)
    yield RedisTier(store, 60, secret), store, metrics
    await store.close()


def damaged(metrics: GatewayMetrics) -> float | None:
    return metrics.registry.get_sample_value("autoglm_redis_damaged_entries_total")


def rewritten(change: Callable[[Embedding], None]) -> Callable[[bytes], bytes]:
    """What somebody stores who changes an embedding and keeps its checksum."""

    def rewrite(entry: bytes) -> bytes:
        embedding = Embedding.FromString(entry[MAC_BYTES:])
        change(embedding)
        return entry[:MAC_BYTES] + embedding.SerializeToString()

    return rewrite


def reshape(*shape: int) -> Callable[[Embedding], None]:
    return lambda embedding: embedding.tokens.shape.__setitem__(slice(None), shape)


def say(words: str) -> Callable[[Embedding], None]:
    return lambda embedding: setattr(embedding, "transcript", words)


def retokenize(embedding: Embedding) -> None:
    embedding.tokens.CopyFrom(seal(bytes(24), (12, 1), embedding.tokens.element_type))


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "shape of three dimensions": rewritten(reshape(3, 4, 1)),
    "shape of other width": rewritten(reshape(6, 2)),
    "no shape": rewritten(reshape()),
    "element type": rewritten(lambda e: setattr(e.tokens, "element_type", ELEMENT_TYPE_FLOAT16)),
    "tokens with a right CRC": rewritten(retokenize),
    "grid": rewritten(lambda e: e.grid.__setitem__(slice(None), [4, 3])),
    "no grid": rewritten(lambda e: e.ClearField("grid")),
    "transcript": rewritten(say("转账")),
    "no transcript": rewritten(say("")),
    "long transcript": rewritten(say("a" * 1_000_000)),
    "revision": rewritten(lambda e: setattr(e, "encoder_revision", "r2")),
    "modality": rewritten(lambda e: setattr(e, "modality", MODALITY_AUDIO)),
    "media": rewritten(lambda e: setattr(e, "media_sha256", bytes(32))),
    "a field that nobody knows": lambda entry: entry + b"\x78\x01",
    "cut": lambda entry: entry[:-3],
    "only a checksum": lambda entry: entry[:MAC_BYTES],
    "shorter than a checksum": lambda entry: entry[:5],
    "without a checksum": lambda entry: entry[MAC_BYTES:],
    "checksum of no secret": lambda e: hmac.digest(b"", e[MAC_BYTES:], "sha256") + e[MAC_BYTES:],
    "no message": lambda entry: b"\xff" * 100,
    "far too large": lambda entry: entry + bytes(2 * MAX_REDIS_BYTES),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_whatever_is_changed_in_an_entry_it_is_dropped(
    valkey: str, change: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async with tier_of(valkey) as (tier, store, metrics):
        key = key_of("a")
        await tier.put(key, spoken(key))
        assert await tier.get(key) == spoken(key)
        entry = await store.client.get(str(key))
        assert isinstance(entry, bytes)
        await store.client.set(str(key), change(entry))
        with caplog.at_level(logging.INFO, LOGGER):
            assert await tier.get(key) is None
        assert await store.client.exists(str(key)) == 0
        assert (damaged(metrics), store.up) == (1, True)
        (line,) = [record.message for record in caplog.records]
        assert "dropped" in line
        assert key.tenant not in line
        await tier.put(key, spoken(key))
        assert await tier.get(key) == spoken(key)


async def test_every_single_bit_of_an_entry_is_under_the_checksum(valkey: str) -> None:
    async with tier_of(valkey) as (tier, store, metrics):
        key = key_of("a")
        await tier.put(key, spoken(key))
        entry = await store.client.get(str(key))
        assert isinstance(entry, bytes)
        for position in range(8 * len(entry)):
            flipped = bytearray(entry)
            flipped[position // 8] ^= 1 << position % 8
            await store.client.set(str(key), bytes(flipped))
            assert await tier.get(key) is None
        assert damaged(metrics) == 8 * len(entry)


async def test_an_entry_counts_only_under_its_own_key(valkey: str) -> None:
    ours = key_of("a")
    others = [
        Key("other", ours.modality, ours.revision, ours.element_type, ours.sha256),
        Key(ours.tenant, ours.modality, "r2", ours.element_type, ours.sha256),
        key_of("b"),
    ]
    async with tier_of(valkey) as (tier, store, _):
        await tier.put(ours, spoken(ours))
        for other in others:
            await store.client.copy(str(ours), str(other))
            assert await tier.get(other) is None
            assert await store.client.exists(str(other)) == 0
        assert await tier.get(ours) == spoken(ours)


@pytest.mark.parametrize(("theirs", "shared"), [("secret", True), ("Secret", False), ("", False)])
async def test_who_has_the_secret_shares_entries(valkey: str, theirs: str, shared: bool) -> None:
    async with tier_of(valkey) as (ours, _, _), tier_of(valkey, theirs) as (other, _, _):
        await other.put(key_of("a"), spoken(key_of("a")))
        assert (await ours.get(key_of("a")) is not None) is shared


TYPES = {
    "list": lambda store, key: store.lpush(key, "x"),
    "hash": lambda store, key: store.hset(key, "x", "y"),
    "stream": lambda store, key: store.xadd(key, {"x": "y"}),
}


@pytest.mark.parametrize("make", TYPES.values(), ids=TYPES.keys())
async def test_a_key_of_another_type_is_dropped_and_redis_stays_in_use(valkey: str, make: Any) -> None:
    async with tier_of(valkey) as (tier, store, metrics):
        await make(store.client, str(key_of("a")))
        assert await tier.get(key_of("a")) is None
        assert (await store.client.exists(str(key_of("a"))), damaged(metrics), store.up) == (0, 1, True)
        await tier.put(key_of("b"), spoken(key_of("b")))
        assert await tier.get(key_of("b")) is not None


@pytest.mark.parametrize("change", [CHANGES["shape of three dimensions"], CHANGES["long transcript"], CHANGES["cut"]])
@pytest.mark.parametrize("part", [image_part(png(colour="purple")), audio_part(wav())], ids=["image", "audio"])
async def test_clients_never_notice_a_damaged_entry(
    serve: Serve, mesh: FakeMesh, valkey: str, change: Callable[[bytes], bytes], part: Any
) -> None:
    secret = {"redis_url": valkey, "cache_secret": "secret"}
    one, two = await serve(**secret), await serve(**secret)
    async with redis.asyncio.Redis.from_url(valkey) as store:
        assert await ask(one, part) == ["miss"]
        key = await stored(store)
        value = await store.get(key)
        assert isinstance(value, bytes)
        await store.set(key, change(value))
        assert await ask(two, part) == ["miss"]

        async def replaced() -> bool:
            return await store.get(key) == value

        await eventually_async(replaced, "the damaged entry is replaced")
    first, second = mesh.decoder.generate.requests[-2:]
    assert first.messages == second.messages
    assert "autoglm_redis_damaged_entries_total 1.0" in (await two.http.get("/metrics")).text


@contextlib.contextmanager
def refusing(url: str, how: str) -> Iterator[str]:
    """Make a server refuse writes, and return an address where it does."""
    with redis.Redis.from_url(url) as store:
        if how == "OOM":
            store.config_set("maxmemory", 1)
        elif how == "READONLY":
            store.replicaof("127.0.0.1", 1)
        else:
            store.acl_setuser("reader", enabled=True, nopass=True, keys="*", commands=["+@all", "-set", "-lpush"])
        try:
            yield url.replace("://", "://reader:x@") if how == "NOPERM" else url
        finally:
            store.config_set("maxmemory", 0)
            store.replicaof("NO", "ONE")
            store.acl_deluser("reader")


@pytest.mark.parametrize("how", ["OOM", "READONLY", "NOPERM"])
async def test_what_is_there_is_read_while_writes_are_refused(
    serve: Serve, valkey: str, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    settings: dict[str, Any] = {"cache_bytes": 0, "redis_backoff": 600}
    assert await ask(await serve(redis_url=valkey, **settings), image_part(png(colour="red"))) == ["miss"]
    async with redis.asyncio.Redis.from_url(valkey) as store:
        await stored(store)
    with refusing(valkey, how) as url, caplog.at_level(logging.INFO, LOGGER):
        client = await serve(redis_url=url, **settings)
        for colour in ("blue", "green", "yellow"):
            assert await ask(client, image_part(png(colour=colour))) == ["miss"]
            assert await ask(client, image_part(png(colour="red"))) == ["redis"]
        assert (await client.http.get("/health/ready")).json()["dependencies"]["redis"] == "up"

        async def told() -> bool:
            return any("refuses" in record.message for record in caplog.records)

        await eventually_async(told, "the refusal is in the log")
    refusals = [record.message for record in caplog.records if "refuses" in record.message]
    told_of = [line for line in refusals if "count lookups" not in line]  # of the first gateway
    assert told_of == [f"redis refuses commands ({how}), such as to lease an embedding; requests go on without"]


@pytest.mark.parametrize("how", ["OOM", "READONLY", "NOPERM"])
async def test_a_gateway_counts_alone_while_redis_refuses_to(
    serve: Serve, limited: str, valkey: str, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    with refusing(valkey, how) as url, caplog.at_level(logging.INFO, LOGGER):
        client = await serve(api_keys_file=limited, redis_url=url, redis_backoff=600)
        assert [(await ask_limited(client, "t1")).status_code for _ in range(4)] == [200, 200, 429, 429]
    refusals = [record.message for record in caplog.records if "refuses" in record.message]
    code = "ERR" if how == "NOPERM" else how  # a script hides it
    assert refusals == [f"redis refuses commands ({code}), such as to count a request; requests go on without"]


async def counts(client: Client, times: int) -> list[int]:
    return [(await ask_limited(client, "t1")).status_code for _ in range(times)]


SPOILS: dict[str, Callable[[Any, Any], Any]] = {
    "string": lambda store, key: store.set(key, "x"),
    "hash": lambda store, key: store.hset(key, "x", "y"),
    "words": lambda store, key: store.rpush(key, "x", "y"),
    "infinite": lambda store, key: store.rpush(key, "inf", "inf"),
    "next year": lambda store, key: store.rpush(key, time.time() + 3e7, time.time() + 3e7),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS.keys())
async def test_a_damaged_count_is_dropped_and_counted_anew(
    serve: Serve, limited: str, valkey: str, spoil: Callable[[Any, Any], Any]
) -> None:
    client = await serve(api_keys_file=limited, redis_url=valkey, redis_backoff=600)
    assert await counts(client, 1) == [200]
    async with redis.asyncio.Redis.from_url(valkey) as store:
        (key,) = await store.keys("ag1*")
        await store.delete(key)
        await spoil(store, key)
        assert await counts(client, 1) == [200]
        assert await store.exists(key) == 0
        assert await counts(client, 3) == [200, 200, 429]
        assert await store.type(key) == b"list"
    assert "autoglm_redis_damaged_entries_total 1.0" in (await client.http.get("/metrics")).text
    assert (await client.http.get("/health/ready")).json()["dependencies"]["redis"] == "up"


@contextlib.asynccontextmanager
async def replying(*replies: bytes) -> AsyncIterator[tuple[str, list[float]]]:
    """A server that gives the replies in turn to whatever it is sent; tells when it was connected to."""
    connections: list[float] = []
    turn = itertools.cycle(replies)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(time.monotonic())
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                writer.write(next(turn))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", connections
    server.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        b"-MASTERDOWN Link with MASTER is down\r\n",
        b"-MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.\r\n",
        b"-CLUSTERDOWN Hash slot not served\r\n",
        b"-MOVED 3999 127.0.0.1:6381\r\n",
    ],
)
async def test_an_error_reply_to_everything_is_no_silence(
    serve: Serve, reply: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with replying(reply * 4) as (url, connections):
        with caplog.at_level(logging.INFO, LOGGER):
            client = await serve(redis_url=url, redis_backoff=600)
            for colour in ("red", "blue", "green"):
                assert await ask(client, image_part(png(colour=colour))) == ["miss"]
        assert len(connections) > 1
    code = reply[1:].split()[0].decode()
    lines = [record.message for record in caplog.records]
    (line,) = [line for line in lines if line != "redis is up"]
    assert f"({code})" in line
    assert "127.0.0.1" not in line


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b"-MOVED nowhere\r\n", b"*1e9\r\n"])
async def test_what_is_no_redis_is_left_alone(serve: Serve, reply: bytes) -> None:
    async with replying(reply) as (url, connections):
        client = await serve(redis_url=url, redis_backoff=600)
        for colour in ("red", "blue", "green", "yellow", "black"):
            assert await ask(client, image_part(png(colour=colour))) == ["miss"]
        assert len(connections) <= 2 * FAILURES_TO_OPEN  # some were on their way when the breaker opened
