"""What a tenant may have, over HTTP and gRPC, over several gateways; and what a gateway holds at once."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import redis.asyncio
import yaml
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from limits.aio.storage import MemoryStorage

from autoglm.gateway.admission.key_file import digest_of
from autoglm.gateway.admission.windows import LocalWindows, RedisWindows, Windows
from autoglm.gateway.context import Tenant
from autoglm.gateway.redis_store import FAILURES_TO_OPEN
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER

from ...waiting import soon
from .conftest import Client, FakeMesh, Serve
from .test_gateway_circuit_breaker import silent_server
from .test_gateway_faults import CHAT, HI, abandon


@pytest.fixture
def limited(tmp_path: Path) -> str:
    """A file of two tenants, of two keys each: `two` may send two requests a minute, `one` one at a time."""
    tenants: list[dict[str, Any]] = [
        {"name": "two", "keys": ["t1", "t2"], "requests_per_minute": 2},
        {"name": "one", "keys": ["o1", "o2"], "max_concurrent_requests": 1},
        {"name": "free", "keys": ["f1"], "requests_per_minute": 0, "max_concurrent_requests": 0},
        {"name": "plain", "keys": ["p1"]},
    ]
    for tenant in tenants:
        tenant["keys"] = [digest_of(key) for key in tenant["keys"]]
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"tenants": tenants}))
    return str(file)


async def ask(client: Client, key: str, **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return await client.http.post("/v1/chat/completions", json={**HI, **fields}, headers=headers)


async def ask_grpc(client: Client, key: str) -> float | None:
    """Return the seconds of RetryInfo when a tenant has had its share, or None after an answer."""
    stub = ChatServiceStub(client.channel)
    answer = stub.Complete(CompleteRequest(chat=CHAT), metadata=(("authorization", f"Bearer {key}"),))
    if await answer.code() == grpc.StatusCode.OK:
        return None
    assert await answer.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer
    status, retry = rpc_status.from_call(caught.value), error_details_pb2.RetryInfo()
    assert status is not None
    assert any(detail.Unpack(retry) for detail in status.details)
    return float(retry.retry_delay.ToMilliseconds() / 1000)


async def rejected(client: Client, tenant: str, reason: str) -> bool:
    line = f'autoglm_requests_rejected_total{{reason="{reason}",tenant="{tenant}"}} 1.0'
    return line in (await client.http.get("/metrics")).text


async def test_both_doors_and_both_keys_count_as_one(serve: Serve, mesh: FakeMesh, limited: str) -> None:
    client = await serve(api_keys_file=limited)
    first = await ask(client, "t1", stream=True)
    assert (first.status_code, first.headers["x-ratelimit-limit-requests"]) == (200, "2")
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert await ask_grpc(client, "t2") is None
    refused = await ask(client, "t2")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 50 < float(refused.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
    assert 50 < int(refused.headers["retry-after"]) <= 61
    assert await rejected(client, "two", "requests_per_minute")
    wait = await ask_grpc(client, "t1")
    assert wait is not None
    assert 50 < wait <= 60.01
    assert len(mesh.decoder.generate.requests) == 2


@pytest.mark.parametrize("shared", [False, True])
async def test_after_the_wait_that_was_told_there_is_one_more(
    serve: Serve, limited: str, valkey: str, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    client = await serve(api_keys_file=limited, **({"redis_url": valkey} if shared else {}))
    now, later = time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: now() + later)
    assert (await ask(client, "t1")).status_code == 200
    later = 20.0
    assert (await ask(client, "t1")).status_code == 200
    wait = await ask_grpc(client, "t1")
    assert wait is not None
    assert 30 < wait <= 40.01
    later = 20.0 + wait - 5
    assert (await ask(client, "t1")).status_code == 429
    later = 20.0 + wait
    assert (await ask(client, "t1")).status_code == 200
    assert (await ask(client, "t1")).status_code == 429


async def test_gateways_that_share_redis_share_the_count(serve: Serve, limited: str, valkey: str) -> None:
    one, two = [await serve(api_keys_file=limited, redis_url=valkey) for _ in range(2)]
    assert (await ask(one, "t1")).headers["x-ratelimit-remaining-requests"] == "1"
    assert (await ask(two, "t1")).headers["x-ratelimit-remaining-requests"] == "0"
    assert [(await ask(client, "t2")).status_code for client in (one, two)] == [429, 429]
    async with redis.asyncio.Redis.from_url(valkey) as store:
        names = [name async for name in store.scan_iter() if not bytes(name).startswith(b"ag4:")]
    assert len(names) == 1
    assert b"two" not in bytes(names[0])


OF_CONNECTIONS = {"HELLO", "CLIENT", "PING"}  # when one is opened, or the gateway looks whether Redis is there


async def test_a_request_is_counted_in_one_round_trip(serve: Serve, limited: str, valkey: str) -> None:
    client = await serve(api_keys_file=limited, redis_url=valkey)
    assert (await ask(client, "t1")).status_code == 200  # after which the server knows the script
    commands = list[str]()
    async with redis.asyncio.Redis.from_url(valkey) as store, store.monitor() as watched:
        for status in (200, 429):
            assert (await ask(client, "t1")).status_code == status
        await store.echo("that is all")
        async for seen in watched.listen():
            if seen["command"].startswith("ECHO"):
                break
            if seen["client_type"] != "lua":  # what a script does is no round trip
                commands.append(seen["command"].split()[0])
    commands = [each for each in commands if each not in OF_CONNECTIONS]
    assert commands == ["EVALSHA", "EVALSHA"]


@pytest.mark.parametrize("given_back", [0, 1, 2, 5])
async def test_both_storages_count_the_same(
    serve: Serve, valkey: str, monkeypatch: pytest.MonkeyPatch, given_back: int
) -> None:
    """The script in Redis does what `limits` does in memory, as time goes by and whatever is given back."""
    tenant, now, start = Tenant(id="t", requests_per_minute=2), time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: start)
    async with redis.asyncio.Redis.from_url(valkey) as client:
        both: tuple[Windows, ...] = (LocalWindows(MemoryStorage()), RedisWindows(client))
        start = round(now())
        for step in range(40):
            start += 7 * (step % 3)
            if step % 5 < given_back:
                assert len({await each.give_back(tenant) for each in both}) == 1
            (spent, stats), (again, shared) = [await each.spend(tenant) for each in both]
            assert (again, shared.remaining) == (spent, stats.remaining), step
            assert shared.reset_time == pytest.approx(stats.reset_time, abs=0.01)


async def test_without_redis_each_gateway_counts_alone(serve: Serve, limited: str) -> None:
    client = await serve(api_keys_file=limited, redis_url="redis://127.0.0.1:1/0")
    assert [(await ask(client, "t1")).status_code for _ in range(3)] == [200, 200, 429]


async def test_a_redis_that_hangs_delays_few_requests_and_fails_none(serve: Serve, limited: str) -> None:
    async with silent_server() as (url, connections):
        client = await serve(api_keys_file=limited, redis_url=url, redis_timeout=0.05, redis_backoff=60)
        assert [(await ask(client, "t1")).status_code for _ in range(8)] == [200, 200, *[429] * 6]
        assert len(connections) <= 2 * FAILURES_TO_OPEN  # some were on their way when the breaker opened


async def test_redis_that_goes_away_in_between(serve: Serve, limited: str, valkey: str) -> None:
    client = await serve(api_keys_file=limited, redis_url=valkey, redis_timeout=2, redis_backoff=60)
    assert (await ask(client, "t1")).headers["x-ratelimit-remaining-requests"] == "1"
    async with redis.asyncio.Redis.from_url(valkey) as store:
        await store.client_pause(10**9, all=False)  # scripts and writes wait
        assert (await ask(client, "t1")).headers["x-ratelimit-remaining-requests"] == "1"
        await store.client_unpause()


@pytest.mark.parametrize("send", [ask, ask_grpc])
async def test_one_at_a_time(serve: Serve, mesh: FakeMesh, limited: str, send: Any) -> None:
    client = await serve(api_keys_file=limited)
    mesh.decoder.generate.hold.clear()
    running = asyncio.create_task(send(client, "o1"))
    await soon(mesh.decoder.generate.entered.wait())
    refused = await ask(client, "o2")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert await ask_grpc(client, "o2") == 1.0
    other = asyncio.create_task(ask(client, "p1"))
    mesh.decoder.generate.hold.set()
    assert (await other).status_code == 200
    await running
    assert (await ask(client, "o2")).status_code == 200


async def test_who_hangs_up_gives_the_slot_back(serve: Serve, mesh: FakeMesh, limited: str) -> None:
    client = await serve(api_keys_file=limited)
    mesh.decoder.generate.hold.clear()
    await abandon(mesh.decoder.generate, asyncio.create_task(ask(client, "o1")))
    mesh.decoder.generate.hold.set()
    assert (await ask(client, "o1")).status_code == 200


async def test_what_the_file_does_not_say_the_settings_do(serve: Serve, limited: str) -> None:
    defaults = {"tenant_requests_per_minute": 1, "tenant_max_concurrent_requests": 1}
    client = await serve(api_keys_file=limited, api_keys="k1,k2", **defaults)
    for key, statuses in {"p1": [200, 429], "k1": [200, 429], "k2": [200, 429], "f1": [200, 200]}.items():
        assert [(await ask(client, key)).status_code for _ in range(2)] == statuses


async def test_without_a_limit_no_headers_tell_of_one(serve: Serve, limited: str) -> None:
    client = await serve(api_keys_file=limited)
    assert not any(name.startswith("x-ratelimit") for name in (await ask(client, "f1")).headers)


async def test_a_request_without_a_slot_is_not_counted(serve: Serve, mesh: FakeMesh) -> None:
    client = await serve(max_concurrent_requests=1, tenant_requests_per_minute=2)
    mesh.decoder.generate.hold.clear()
    first = asyncio.create_task(client.chat("hi"))
    await soon(mesh.decoder.generate.entered.wait())
    assert (await client.chat("hi")).status_code == 429
    assert await rejected(client, "anonymous", "capacity")
    mesh.decoder.generate.hold.set()
    assert (await first).status_code == 200
    assert (await client.chat("hi")).headers["x-ratelimit-remaining-requests"] == "0"


async def test_more_requests_than_slots(serve: Serve, mesh: FakeMesh) -> None:
    client = await serve(max_concurrent_requests=1)
    mesh.decoder.generate.hold.clear()
    first = asyncio.create_task(client.chat("hi"))
    await soon(mesh.decoder.generate.entered.wait())
    refused = await client.chat("hi")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refused.headers["retry-after"] == "1"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ChatServiceStub(client.channel).Complete(CompleteRequest(chat=CHAT))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    mesh.decoder.generate.hold.set()
    assert (await first).status_code == 200
    assert (await client.chat("hi")).status_code == 200


async def test_when_requests_in_progress_hold_much_large_ones_wait_and_small_ones_do_not(
    serve: Serve, mesh: FakeMesh
) -> None:
    client = await serve(max_body_bytes=100_000, max_bytes_in_progress=150_000)
    mesh.decoder.generate.hold.clear()
    long = "hi " * 30_000
    first = asyncio.create_task(client.chat(long))
    await soon(mesh.decoder.generate.entered.wait())
    refused = await client.chat(long)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refused.headers["retry-after"] == "1"
    chat = ChatRequest(messages=[ChatMessage(role=ROLE_USER, parts=[ContentPart(text=long)])])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ChatServiceStub(client.channel).Complete(CompleteRequest(chat=chat))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    mesh.decoder.generate.entered.clear()
    small = asyncio.create_task(client.chat("hi"))
    await soon(mesh.decoder.generate.entered.wait())
    mesh.decoder.generate.hold.set()
    assert [(await answer).status_code for answer in (first, small)] == [200, 200]
    assert (await client.chat(long)).status_code == 200
    assert 'reason="memory",tenant="anonymous"} 2.0' in (await client.http.get("/metrics")).text
