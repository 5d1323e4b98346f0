"""Single flight across gateways that share Redis: one encodes, the others wait for it and take over when it fails."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import redis

from autoglm.cli.isolation import free_ports
from autoglm.common.errors import ModalityUnavailable
from autoglm.gateway.media import cache as cache_module
from autoglm.gateway.media.lease import Lease

from ...waiting import NET_SECONDS, eventually_async, soon
from .conftest import BUNDLE, Client, FakeMesh, Serve
from .redis_servers import running_server
from .samples import image_part, png
from .test_gateway_cache import ask
from .test_gateway_faults import abandon

PICTURE = image_part(png(colour="orange"))


async def two_gateways(serve: Serve, url: str, **settings: Any) -> tuple[Client, Client]:
    one, two = [await serve(redis_url=url, **settings) for _ in range(2)]
    return one, two


async def looked(client: Client, tier: str, count: int) -> None:
    """Wait until a gateway has looked `count` times for a picture in a tier."""

    async def so_often() -> bool:
        line = f'autoglm_embedding_cache_queries_total{{modality="image",tier="{tier}"}} {count}.0'
        return line in (await client.http.get("/metrics")).text

    await eventually_async(so_often, f"it has looked for the picture {count} times")


def asking(client: Client, count: int) -> list["asyncio.Task[list[str]]"]:
    return [asyncio.create_task(ask(client, PICTURE)) for _ in range(count)]


async def test_a_hundred_at_once_on_two_gateways_are_encoded_once(serve: Serve, mesh: FakeMesh, valkey: str) -> None:
    one, two = await two_gateways(serve, valkey)
    mesh.vision.encode.hold.clear()
    tasks = [*asking(one, 50), *asking(two, 50)]
    for client in (one, two):
        await looked(client, "local", 50)
        await looked(client, "redis", 1)
    mesh.vision.encode.hold.set()
    found = [source for task in tasks for source in await task]
    assert sorted(found) == ["miss"] + ["shared"] * 99
    assert len(mesh.vision.encode.requests) == 1
    first, *others = mesh.decoder.generate.requests
    assert len(others) == 99
    assert all(other.messages == first.messages for other in others)


@contextmanager
def gateway_process(mesh: FakeMesh, redis_url: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a gateway that can be killed, and yield its address."""
    (port,) = free_ports(1)
    settings = {"HOST": "127.0.0.1", "HTTP_PORT": port, "GRPC_PORT": 0, "SERVE_ADDRESS": mesh.address}
    settings |= {"REDIS_URL": redis_url, "REDIS_TIMEOUT": 10}
    environment = os.environ | {f"AUTOGLM_{name}": str(value) for name, value in settings.items()}
    process = subprocess.Popen([sys.executable, "-m", "autoglm.gateway.app"], env=environment)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(NET_SECONDS)


async def ready(http: httpx.AsyncClient) -> None:
    async def answers() -> bool:
        try:
            return (await http.get("/health/ready")).is_success
        except httpx.TransportError:
            return False

    await eventually_async(answers, "the gateway is ready")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_after_the_holder_dies_exactly_one_more_encodes(
    serve: Serve, mesh: FakeMesh, valkey: str, how: signal.Signals
) -> None:
    two, three = await two_gateways(serve, valkey)
    mesh.vision.encode.hold.clear()
    body = {"model": BUNDLE, "messages": [{"role": "user", "content": [PICTURE]}]}
    with gateway_process(mesh, valkey) as (process, url):
        async with httpx.AsyncClient(base_url=url, timeout=NET_SECONDS, trust_env=False) as http:
            await ready(http)
            lost = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            await soon(mesh.vision.encode.entered.wait())
            tasks = [*asking(two, 20), *asking(three, 20)]
            for client in (two, three):
                await looked(client, "redis", 1)
            process.send_signal(how)

            async def taken_over() -> bool:
                return len(mesh.vision.encode.requests) == 2

            await eventually_async(taken_over, "another gateway has it encoded")
            mesh.vision.encode.hold.set()
            found = [source for task in tasks for source in await task]
            assert sorted(found) == ["miss"] + ["shared"] * 39
            assert len(mesh.vision.encode.requests) == 2
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)


async def test_a_lease_lasts_as_long_as_the_encoder_takes(
    serve: Serve, mesh: FakeMesh, valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoglm.gateway.media.lease.LEASE_SECONDS", 0.5)
    one, two = await two_gateways(serve, valkey)
    mesh.vision.encode.hold.clear()
    first = asyncio.create_task(ask(one, PICTURE))
    await soon(mesh.vision.encode.entered.wait())
    second = asyncio.create_task(ask(two, PICTURE))
    with redis.Redis.from_url(valkey) as store:
        (lease,) = list(store.scan_iter("ag-lease:*"))
        seen, last = 0, 0

        async def renewed_often() -> bool:
            nonlocal seen, last
            left = store.pttl(lease)
            assert isinstance(left, int)
            seen, last = seen + (left > last), left
            return seen > 8  # each renewal is the moment that more is left than before

        await eventually_async(renewed_often, "the lease is renewed beyond its time")
        mesh.vision.encode.hold.set()
        assert (await first, await second) == (["miss"], ["shared"])
        assert len(mesh.vision.encode.requests) == 1

        async def released() -> bool:
            return not store.exists(lease)

        await eventually_async(released, "the lease is released")


async def test_when_the_holders_client_leaves_another_gateway_takes_over(
    serve: Serve, mesh: FakeMesh, valkey: str
) -> None:
    one, two = await two_gateways(serve, valkey)
    mesh.vision.encode.hold.clear()
    first = asyncio.create_task(ask(one, PICTURE))
    await soon(mesh.vision.encode.entered.wait())
    second = asyncio.create_task(ask(two, PICTURE))
    await looked(two, "redis", 1)
    await abandon(mesh.vision.encode, first)
    mesh.vision.encode.hold.set()
    assert await second == ["miss"]
    assert len(mesh.vision.encode.requests) == 2


async def test_when_the_holders_encoder_fails_another_gateway_asks_its_own(
    serve: Serve, mesh: FakeMesh, valkey: str
) -> None:
    one, two = await two_gateways(serve, valkey)
    mesh.vision.encode.hold.clear()
    mesh.vision.encode.error = ModalityUnavailable("no")
    first = asyncio.create_task(one.chat([PICTURE]))
    await soon(mesh.vision.encode.entered.wait())
    second = asyncio.create_task(two.chat([PICTURE]))
    await looked(two, "redis", 1)
    mesh.vision.encode.hold.set()
    assert (await first).status_code == (await second).status_code == 503
    assert len(mesh.vision.encode.requests) == 2


async def test_when_redis_dies_nobody_goes_on_waiting(serve: Serve, mesh: FakeMesh) -> None:
    (port,) = free_ports(1)
    with running_server(port) as server:
        one, two = await two_gateways(serve, f"redis://127.0.0.1:{port}/0")
        mesh.vision.encode.hold.clear()
        first = asyncio.create_task(ask(one, PICTURE))
        await soon(mesh.vision.encode.entered.wait())
        second = asyncio.create_task(ask(two, PICTURE))
        await looked(two, "redis", 1)
        server.kill()

        async def asked_too() -> bool:
            return len(mesh.vision.encode.requests) == 2

        await eventually_async(asked_too, "the other gateway has it encoded too")
        mesh.vision.encode.hold.set()
        assert (await first, await second) == (["miss"], ["miss"])


async def test_nobody_waits_forever_for_a_holder_that_does_not_end(
    serve: Serve, mesh: FakeMesh, valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "MAX_WAIT_SECONDS", 0.1)
    one, two = await two_gateways(serve, valkey)
    mesh.vision.encode.hold.clear()
    tasks = asking(one, 1)
    await soon(mesh.vision.encode.entered.wait())
    tasks += asking(two, 1)

    async def asked_too() -> bool:
        return len(mesh.vision.encode.requests) == 2

    await eventually_async(asked_too, "the other gateway has it encoded too")
    mesh.vision.encode.hold.set()
    assert [await task for task in tasks] == [["miss"], ["miss"]]


async def test_an_entry_stored_between_look_and_lease_is_found(
    serve: Serve, mesh: FakeMesh, valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other gateway looks, finds nothing, and gets the lease after the first has stored and released it."""
    one, two = await two_gateways(serve, valkey)
    looking, go_on = asyncio.Event(), asyncio.Event()
    take = Lease.take

    async def late(lease: Lease) -> bool | None:
        looking.set()
        await go_on.wait()
        return await take(lease)

    monkeypatch.setattr(Lease, "take", late)
    second = asyncio.create_task(ask(two, PICTURE))
    await soon(looking.wait())
    monkeypatch.setattr(Lease, "take", take)
    assert await ask(one, PICTURE) == ["miss"]
    with redis.Redis.from_url(valkey) as store:

        async def stored() -> bool:
            return bool(store.keys("ag4:*")) and not store.keys("ag-lease:*")

        await eventually_async(stored, "the entry is stored and the lease released")
    go_on.set()
    assert await second == ["shared"]
    assert len(mesh.vision.encode.requests) == 1


async def test_a_hash_of_nothing_known_is_refused_without_a_lease(serve: Serve, mesh: FakeMesh, valkey: str) -> None:
    one, _ = await two_gateways(serve, valkey)
    unknown = {"type": "image_url", "image_url": {"url": f"sha256:{'0' * 64}"}}
    response = await one.chat([unknown])
    assert (response.status_code, response.json()["error"]["type"]) == (404, "media_unknown")
