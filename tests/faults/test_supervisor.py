"""The supervisor starts gateway and cache again however often they end, and ends what is suspended."""

import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from autoglm.cli.supervision import LONGEST_DELAY

from ..asking import Asker
from ..cases import screen_cases
from ..mesh import Mesh, running_mesh
from ..waiting import NET_SECONDS, eventually

AGAIN = "starting it again"


@pytest.fixture(autouse=True)
def whole(mesh: Mesh, ask: Asker) -> Iterator[None]:
    """Every test leaves the mesh as it found it, with no zombie that the supervisor should have reaped."""
    yield
    eventually(lambda: is_whole(ask), "the mesh is whole")
    eventually(lambda: not mesh.zombies(), "every orphan is reaped")
    eventually(lambda: ask.post("你是谁?").status_code == 200, "text is answered")


def is_whole(ask: Asker) -> bool:
    with suppress(httpx.TransportError):
        dependencies = ask.http.get("/health/ready").json()["dependencies"]
        return all(state == "up" for state in dependencies.values())
    return False


def state(process: psutil.Process) -> str:
    """Return the state of a process, or that of a dead one once it is gone."""
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return str(psutil.STATUS_DEAD)


def gateways(mesh: Mesh) -> list[psutil.Process]:
    """The gateway's process, if there is one."""
    with suppress(StopIteration, psutil.NoSuchProcess):
        return [mesh.gateway()]
    return []


def kill(process: psutil.Process) -> None:
    process.kill()
    process.wait(NET_SECONDS)


def restarts(mesh: Mesh, name: str) -> int:
    return sum(f"{name} " in line and AGAIN in line for line in mesh.lines())


def test_a_gateway_that_dies_while_the_decoder_hangs_comes_back(mesh: Mesh) -> None:
    decoder = mesh.replica("decoder")
    decoder.suspend()
    kill(mesh.gateway())
    eventually(lambda: gateways(mesh), "there is another gateway")
    eventually(lambda: state(decoder) == psutil.STATUS_DEAD, "the decoder is ended")


def test_a_cache_killed_again_and_again_comes_back(mesh: Mesh, ask: Asker) -> None:
    for number in range(5):
        eventually(mesh.caches, "there is another cache")
        kill(mesh.cache())
        image = screen_cases("open", "home", 1, seed=900 + number)[0].image
        assert ask.post(image).status_code == 200


def test_a_grpc_proxy_that_dies_comes_back(mesh: Mesh) -> None:
    for part in ("master", "worker"):
        proxy = mesh.grpc_proxy()
        kill(proxy if part == "master" else proxy.children()[0])
        eventually(partial(comes_back, mesh, proxy), f"gRPC is served again after its {part} died")


def comes_back(mesh: Mesh, died: psutil.Process) -> bool:
    """Return whether another proxy leads to the gateway."""
    with (
        suppress(StopIteration, psutil.NoSuchProcess, grpc.RpcError),
        grpc.insecure_channel(mesh.grpc_address) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=NET_SECONDS)
        return mesh.grpc_proxy() != died
    return False


def test_a_gateway_whose_port_is_taken_waits_for_it(mesh: Mesh) -> None:
    with taken_port(mesh):
        before = restarts(mesh, "The gateway ended with status 1;")
        eventually(lambda: restarts(mesh, "The gateway ended with status 1;") >= before + 2, "it was tried twice")
        kill(mesh.cache())
        eventually(mesh.caches, "the cache is started again meanwhile")
    assert mesh.process.poll() is None


def taken_port(mesh: Mesh) -> socket.socket:
    """Kill the gateway until its port is ours."""
    limit = time.monotonic() + NET_SECONDS
    while True:
        assert time.monotonic() < limit
        for gateway in gateways(mesh):
            kill(gateway)
        with suppress(OSError):
            return socket.create_server(("127.0.0.1", mesh.http_port))


SUSPENDED: dict[str, Callable[[Mesh], psutil.Process | None]] = {  # test_outages.py has the others
    "grpc proxy": Mesh.grpc_proxy,
    "manager": lambda mesh: mesh.running("ray::HAProxyManager"),
    "controller": lambda mesh: mesh.running("ray::ServeController"),
}


@pytest.mark.parametrize("part", SUSPENDED)
def test_a_part_that_is_suspended_is_replaced(mesh: Mesh, part: str) -> None:
    process = SUSPENDED[part](mesh)
    assert process is not None
    process.suspend()
    eventually(lambda: state(process) in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD), "it is ended")
    assert any(f"(process {process.pid}) is suspended" in line for line in mesh.lines())


def test_ctrl_c_during_a_delay_ends_at_once(tmp_path: Path) -> None:
    with running_mesh(tmp_path / "serve.log", "--modalities", "text") as other:
        while not any(f"{AGAIN} in {LONGEST_DELAY:g} s" in line for line in other.lines()):
            for gateway in gateways(other):
                kill(gateway)
        assert other.stop(signal.SIGINT) == 0
        assert other.lines()[-1].endswith("Stopped")
