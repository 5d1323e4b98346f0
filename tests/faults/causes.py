"""The faults: how each is caused in a running mesh, and how it is undone."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil
import redis

from ..mesh import Mesh
from ..waiting import NET_SECONDS, comes_true

Undo = Callable[[], str]  # returns what is to be said of it, if anything
Cause = Callable[[Mesh], Undo]
Find = Callable[[Mesh], psutil.Process]
DEATHS = 10


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault by its name, and what clients ask meanwhile: text, or a new image or recording each time."""

    name: str
    cause: Cause
    asks: str = "text"


def killed(find: Find) -> Cause:
    """Kill the process."""

    def cause(mesh: Mesh) -> Undo:
        process = find(mesh)
        process.kill()
        return lambda: ""

    return cause


def suspended(find: Find) -> Cause:
    """Let the process hang until it is replaced, or to the end of the measurement."""

    def cause(mesh: Mesh) -> Undo:
        process = find(mesh)
        process.suspend()

        def undo() -> str:
            with suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_STOPPED:
                    process.resume()
                    return "not replaced; it went on at the end"
            return ""

        return undo

    return cause


def gateway_killed_again_and_again(mesh: Mesh) -> Undo:
    """Kill the gateway as soon as it runs, ten times."""
    deaths = 0

    def is_over() -> bool:
        nonlocal deaths
        if found := mesh.running("autoglm.gateway.app"):
            found.kill()
            found.wait(NET_SECONDS)
            deaths += 1
        return deaths == DEATHS or mesh.process.poll() is not None

    comes_true(is_over, NET_SECONDS)
    return lambda: f"{deaths} times"


def configured(settings: Mapping[str, str]) -> Cause:
    """Change settings of Redis."""

    def cause(mesh: Mesh) -> Undo:
        with redis.Redis.from_url(mesh.redis_url, decode_responses=True) as store:
            before = {name: store.config_get(name)[name] for name in settings}
            store.config_set(*(word for pair in settings.items() for word in pair))

        def undo() -> str:
            with redis.Redis.from_url(mesh.redis_url) as store:
                store.config_set(*(word for pair in before.items() for word in pair))
            return ""

        return undo

    return cause


def read_only(mesh: Mesh) -> Undo:
    """Make Redis the replica of a server that is not there: it can be read, not written."""
    with redis.Redis.from_url(mesh.redis_url) as store:
        store.replicaof("127.0.0.1", "1")

    def undo() -> str:
        with redis.Redis.from_url(mesh.redis_url) as store:
            store.replicaof("NO", "ONE")
        return ""

    return undo


def part(name: str) -> Find:
    """Return what finds a process by a piece of its command line."""

    def find(mesh: Mesh) -> psutil.Process:
        found = mesh.running(name)
        assert found is not None, f"no {name} runs"
        return found

    return find


def replica(name: str) -> Find:
    """Return what finds the replica of an application."""
    return lambda mesh: mesh.replica(name)


FAULTS = (
    Fault("the gateway is killed", killed(Mesh.gateway)),
    Fault("the gateway is killed ten times, as soon as it runs", gateway_killed_again_and_again),
    Fault("the gateway hangs", suspended(Mesh.gateway)),
    Fault("the gateway's proxy for gRPC is killed", killed(Mesh.grpc_proxy)),
    Fault("HAProxy is killed", killed(Mesh.haproxy)),
    Fault("HAProxy hangs", suspended(Mesh.haproxy)),
    Fault("HAProxy's manager is killed", killed(part("ray::HAProxyManager"))),
    Fault("the decoder's replica is killed", killed(replica("decoder"))),
    Fault("the decoder's replica hangs", suspended(replica("decoder"))),
    Fault("the vision replica is killed", killed(replica("vision")), "image"),
    Fault("the vision replica hangs", suspended(replica("vision")), "image"),
    Fault("the speech replica is killed", killed(replica("speech")), "audio"),
    Fault("the speech replica hangs", suspended(replica("speech")), "audio"),
    Fault("Serve's controller is killed", killed(part("ray::ServeController"))),
    Fault("Ray's agent is killed", killed(part("dashboard/agent.py"))),
    Fault("the cache is killed", killed(Mesh.cache), "image"),
    Fault("the cache hangs", suspended(Mesh.cache), "image"),
    Fault("the cache is full", configured({"maxmemory-policy": "noeviction", "maxmemory": "1"}), "image"),
    Fault("the cache is read-only", read_only, "image"),
    Fault("Ray's raylet is killed", killed(part("raylet/raylet"))),
    Fault("Ray's control server is killed", killed(part("gcs_server"))),
)


def fault(name: str) -> Fault:
    """Return the fault of this name."""
    return next(fault for fault in FAULTS if fault.name == name)
