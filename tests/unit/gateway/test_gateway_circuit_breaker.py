"""The circuit breaker of Redis: it opens when Redis is down or hangs, and closes when it is back."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from pydantic import SecretStr

from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.redis_store import FAILURES_TO_OPEN, MAX_CONNECTIONS, RedisStore
from autoglm.gateway.settings import Settings

from ...waiting import eventually_async, turns
from .conftest import Serve
from .samples import image_part, png
from .test_gateway_cache import ask


async def test_without_redis_requests_are_answered_and_the_log_says_it_once(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "autoglm.gateway.redis_store"):
        client = await serve(redis_url="redis://:hidden@127.0.0.1:1/0")
        for colour in ("red", "blue", "green"):
            assert await ask(client, image_part(png(colour=colour))) == ["miss"]
    told = [record.message for record in caplog.records if record.name == "autoglm.gateway.redis_store"]
    assert len(told) == 1
    assert "redis is down" in told[0]
    assert "hidden" not in told[0]
    ready = await client.http.get("/health/ready")
    assert (ready.status_code, ready.json()["dependencies"]["redis"]) == (200, "down")
    assert "autoglm_redis_up 0.0" in (await client.http.get("/metrics")).text


@contextlib.asynccontextmanager
async def silent_server() -> AsyncIterator[tuple[str, list[float]]]:
    """Listen like a Redis that hangs; tells when it was connected to."""
    connections: list[float] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(time.monotonic())
        await reader.read()
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", connections
    server.close()


async def test_a_redis_that_hangs_is_left_alone(serve: Serve) -> None:
    async with silent_server() as (url, connections):
        client = await serve(redis_url=url, redis_timeout=0.05, redis_backoff=60)
        for colour in ("red", "blue", "green", "yellow", "black", "white"):
            assert await ask(client, image_part(png(colour=colour))) == ["miss"]
        assert (
            FAILURES_TO_OPEN <= len(connections) <= 2 * FAILURES_TO_OPEN
        )  # some were on their way when the breaker opened


async def test_redis_coming_back_is_used_again(serve: Serve, valkey: str) -> None:
    async with redis.asyncio.Redis.from_url(valkey) as store:
        client = await serve(redis_url=valkey, redis_backoff=0.05, redis_timeout=0.1)
        await store.client_pause(400)
        assert await ask(client, image_part(png(colour="orange"))) == ["miss"]

        async def back() -> bool:
            return bool((await client.http.get("/health/ready")).json()["dependencies"]["redis"] == "up")

        await eventually_async(back, "Redis is asked again")


@contextlib.asynccontextmanager
async def store_of(url: str, **settings: Any) -> AsyncIterator[tuple[RedisStore, GatewayMetrics]]:
    metrics = GatewayMetrics()
    store = RedisStore(Settings(redis_url=SecretStr(url), **settings), metrics)
    yield store, metrics
    await store.close()


async def test_a_burst_waits_for_connections_and_is_no_fault_of_redis(valkey: str) -> None:
    async with store_of(valkey, redis_timeout=30) as (store, metrics), redis.asyncio.Redis.from_url(valkey) as other:
        await other.client_pause(200)  # all are asked before the first is answered
        pings = [store.ask("ping", store.client.ping) for _ in range(5 * MAX_CONNECTIONS)]
        assert await asyncio.gather(*pings) == [True] * 5 * MAX_CONNECTIONS
        assert (await other.info("clients"))["connected_clients"] <= MAX_CONNECTIONS + 1
        assert metrics.registry.get_sample_value("autoglm_redis_up") == 1


async def test_a_single_failure_does_not_open_the_breaker(valkey: str) -> None:
    async with store_of(valkey, redis_timeout=30, redis_backoff=600) as (store, _):
        assert await store.ask("ping", store.client.ping)
        for failures in range(1, FAILURES_TO_OPEN):
            for _ in range(failures):
                await store.ask("fail", fail)
            assert store.up
            assert await store.ask("ping", store.client.ping)


async def fail() -> None:
    raise ConnectionResetError


async def test_one_request_tries_again_while_the_others_go_on_without(valkey: str) -> None:
    async with store_of(valkey, redis_timeout=30, redis_backoff=0.001) as (store, _):
        await asyncio.gather(*(store.ask("fail", fail) for _ in range(2 * FAILURES_TO_OPEN)))
        assert not store.up
        tried, answer = 0, asyncio.Event()

        async def probe() -> str:
            nonlocal tried
            tried += 1
            await answer.wait()
            return "pong"

        async def probing() -> bool:
            probes.append(asyncio.create_task(store.ask("probe", probe)))
            await turns()
            return tried == 1

        probes: list[asyncio.Task[str | None]] = []
        await eventually_async(probing, "the pause is over")
        assert await asyncio.gather(*(store.ask("probe", probe) for _ in range(10))) == [None] * 10
        answer.set()
        assert [task for task in await asyncio.gather(*probes) if task] == ["pong"]
        assert store.up
        assert tried == 1
        assert await store.ask("probe", probe) == "pong"


async def test_a_probe_that_is_cancelled_leaves_the_next_to_try(valkey: str) -> None:
    async with store_of(valkey, redis_timeout=30, redis_backoff=0.001) as (store, _):
        await asyncio.gather(*(store.ask("fail", fail) for _ in range(FAILURES_TO_OPEN)))
        entered = asyncio.Event()

        async def hang() -> None:
            entered.set()
            await asyncio.Event().wait()

        async def hanging() -> bool:
            probes.append(asyncio.create_task(store.ask("hang", hang)))
            await turns()
            return entered.is_set()

        probes: list[asyncio.Task[None]] = []
        await eventually_async(hanging, "the pause is over")
        probes[-1].cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        assert await store.ask("ping", store.client.ping)
