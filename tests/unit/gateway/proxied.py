"""A gateway as `autoglm serve` runs it: its gRPC server on a Unix socket, with HAProxy in front."""

import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx

from autoglm.cli.grpc_proxy import GrpcProxy
from autoglm.cli.isolation import free_ports
from autoglm.gateway.app import running
from autoglm.gateway.settings import Settings

from ...waiting import NET_SECONDS
from .conftest import Client, FakeMesh

HOST = "127.0.0.1"


@dataclass
class Proxy:
    """A running HAProxy, and where its gateway is to listen."""

    proxy: GrpcProxy
    process: subprocess.Popen[bytes]
    settings: Settings

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"{HOST}:{self.settings.grpc_port}"

    def renew(self) -> None:
        """Do what the supervisor does with files for TLS."""
        if self.proxy.renew():
            self.process.send_signal(signal.SIGUSR2)


@asynccontextmanager
async def proxying(folder: Path, address: str, **given: Any) -> AsyncIterator[Proxy]:
    """Run an HAProxy, for a gateway with these settings in front of the services at `address`."""
    fixed: dict[str, Any] = {"host": HOST, "http_port": 0, "grpc_port": free_ports(1)[0], "serve_address": address}
    settings = Settings(**{**fixed, "poll_interval": 0.05, "drain_timeout": 1.0, **given})
    proxy = GrpcProxy(settings, folder)
    process = _spawn(proxy, folder)
    try:
        proxy.wait(process)
        yield Proxy(proxy, process, settings.model_copy(update={"grpc_socket": str(proxy.server_socket)}))
    finally:
        process.terminate()
        process.wait()


def _spawn(proxy: GrpcProxy, folder: Path) -> subprocess.Popen[bytes]:
    """Do what `proxy.start` does, without a fork: gRPC's threads run here already."""
    with (folder / "grpc-proxy.log").open("wb") as log:
        return subprocess.Popen(proxy.command, env=proxy.environment, stdout=log, stderr=log)


@asynccontextmanager
async def proxied(mesh: FakeMesh, folder: Path, **given: Any) -> AsyncIterator[Client]:
    """Run a gateway before `mesh` and an HAProxy before its gRPC server."""
    async with proxying(folder, mesh.address, **given) as proxy, running(proxy.settings) as ports:
        url = f"http://{HOST}:{ports.http_port}"
        channel = grpc.aio.insecure_channel(proxy.address)
        async with httpx.AsyncClient(base_url=url, timeout=NET_SECONDS, trust_env=False) as http, channel:
            yield Client(http, channel, url, proxy.settings.grpc_port, mesh)
