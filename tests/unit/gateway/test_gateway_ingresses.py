"""Several nodes have an ingress to the services: all of them get calls, and one that vanishes is left out."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from autoglm.common.testing import serving
from autoglm.gateway import upstream

from ...relay import relaying
from ...waiting import eventually_async, soon
from .conftest import FakeMesh, running_client


def target(*addresses: str) -> str:
    """Return what a name with several addresses resolves to, as a target of gRPC."""
    return "ipv4:" + ",".join(addresses)


async def test_every_ingress_gets_calls() -> None:
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(serving(FakeMesh())) for _ in range(2)]
        address = target(first.address, second.address)
        async with running_client(first, serve_address=address) as client:

            async def both_answered() -> bool:
                assert (await client.chat("hi")).status_code == 200
                return all(mesh.decoder.generate.requests for mesh in (first, second))

            await eventually_async(both_answered, "both ingresses get calls")
            before = [len(mesh.decoder.generate.requests) for mesh in (first, second)]
            for _ in range(10):
                assert (await client.chat("hi")).status_code == 200
            after = [len(mesh.decoder.generate.requests) for mesh in (first, second)]
            assert min(new - old for new, old in zip(after, before, strict=True)) >= 3


async def test_while_one_ingress_is_down_the_others_answer() -> None:
    async with serving(FakeMesh()) as first, AsyncExitStack() as stack:
        second = await stack.enter_async_context(serving(FakeMesh()))
        async with running_client(first, serve_address=target(first.address, second.address)) as client:
            assert (await client.chat("hi")).status_code == 200
            await stack.aclose()
            for _ in range(10):
                assert (await client.chat("hi")).status_code == 200


async def test_a_node_that_vanishes_is_noticed_by_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing closes the connection: without pings, calls would wait for their deadline."""
    quick = {"grpc.keepalive_time_ms": 1000, "grpc.keepalive_timeout_ms": 1000}
    monkeypatch.setattr(upstream, "_OPTIONS", tuple(dict(upstream._OPTIONS, **quick).items()))
    async with serving(FakeMesh()) as mesh:
        with relaying(mesh.port) as relay:
            async with running_client(mesh, serve_address=relay.address) as client:
                assert (await client.chat("hi")).status_code == 200
                mesh.decoder.generate.hold.clear()
                waiting = asyncio.create_task(client.chat("hi"))
                await soon(mesh.decoder.generate.entered.wait())
                relay.lose()
                mesh.decoder.generate.hold.set()
                assert (await soon(waiting)).status_code in (200, 503)
                assert (await soon(client.chat("hi"))).status_code == 200
                assert relay.connections > 1
