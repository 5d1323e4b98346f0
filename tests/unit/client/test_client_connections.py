"""Connections that are lost and found, and calls that are not wanted any more."""

import asyncio

import pytest

from autoglm.client import AsyncClient, base

from ...relay import relaying
from ...waiting import NET_SECONDS
from .conftest import Connect, FakeMesh


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends a ping each second, the shortest time that gRPC allows."""
    quick = {"grpc.keepalive_time_ms": 1000, "grpc.http2.ping_timeout_ms": 2000}
    monkeypatch.setattr(base, "OPTIONS", tuple((dict(base.OPTIONS) | quick).items()))


def test_a_connection_that_was_lost_without_a_word(
    mesh: FakeMesh, connect: Connect, quick: None, impatient: None
) -> None:
    with relaying(mesh.port) as relay:
        client = connect(relay.address, timeout=NET_SECONDS)
        client.chat("hi")
        relay.lose()
        assert client.chat("hi").text == "你好"
    assert (relay.connections, len(mesh.requests)) == (2, 2)


async def test_a_cancelled_task_cancels_its_call(mesh: FakeMesh) -> None:
    mesh.hold.clear()
    async with AsyncClient(mesh.address) as client:
        asking = asyncio.create_task(client.chat("hi"))
        await asyncio.to_thread(mesh.entered.wait, NET_SECONDS)
        assert not mesh.ended.is_set()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await asyncio.to_thread(mesh.ended.wait, NET_SECONDS)
