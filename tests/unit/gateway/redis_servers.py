"""Valkey servers that a test can kill: alone, with Sentinel, and as a cluster."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
from redis.exceptions import RedisError

from autoglm.cli.checks import cache_binary
from autoglm.cli.isolation import free_ports

from ...waiting import NET_SECONDS, eventually

SERVICE = "autoglm-cache"
DOWN_MS = 500  # without an answer, after which Sentinel and cluster take a server for dead


@dataclass
class Server:
    """A running server, or Sentinel."""

    port: int
    process: subprocess.Popen[bytes]
    options: Mapping[str, object] = field(default_factory=dict)

    def client(self, **options: object) -> "redis.Redis":
        return redis.Redis("127.0.0.1", self.port, socket_timeout=NET_SECONDS, **{**self.options, **options})  # type: ignore[arg-type]

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except (RedisError, OSError):
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(NET_SECONDS)


@contextmanager
def running_server(port: int, *arguments: str, **client_options: object) -> Iterator[Server]:
    """Run a server with nothing on disk; `client_options` are those of a client that may ping it."""
    binary = cache_binary()
    assert binary is not None
    folder = tempfile.mkdtemp(prefix="valkey-")
    fixed = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder, "--daemonize", "no")
    process = subprocess.Popen([binary, *fixed, *arguments], stdout=subprocess.DEVNULL)
    server = Server(port, process, client_options)
    try:
        eventually(server.answers, "the server answers")
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Watched:
    """A master, its replica, and the Sentinel that puts the one in the other's place."""

    url: str
    master: Server
    replica: Server
    sentinel: Server


@contextmanager
def with_sentinel(password: str = "") -> Iterator[Watched]:
    """Run a master with one replica and one Sentinel, whose word is enough; all three ask for `password`."""
    master_port, replica_port, sentinel_port = free_ports(3)
    secret = ("--requirepass", password, "--masterauth", password) if password else ()
    options = {"password": password} if password else {}
    with ExitStack() as stack:
        master = stack.enter_context(running_server(master_port, *secret, **options))
        of_master = ("--replicaof", f"127.0.0.1 {master_port}", "--repl-diskless-sync-delay", "0")
        replica = stack.enter_context(running_server(replica_port, *secret, *of_master, **options))
        eventually(lambda: _is_linked(replica), "the replica has what the master has")
        sentinel = stack.enter_context(_running_sentinel(sentinel_port, master_port, password))
        eventually(lambda: _knows_replica(sentinel), "Sentinel knows the replica")
        user = f":{password}@" if password else ""
        query = f"?sentinel_password={password}" if password else ""
        yield Watched(f"redis+sentinel://{user}127.0.0.1:{sentinel_port}/{SERVICE}{query}", master, replica, sentinel)


@contextmanager
def _running_sentinel(port: int, master_port: int, password: str) -> Iterator[Server]:
    lines = [
        f"sentinel monitor {SERVICE} 127.0.0.1 {master_port} 1",
        f"sentinel down-after-milliseconds {SERVICE} {DOWN_MS}",
        f"sentinel failover-timeout {SERVICE} 2000",
        *([f"sentinel auth-pass {SERVICE} {password}", f"requirepass {password}"] if password else []),
    ]
    with tempfile.TemporaryDirectory(prefix="sentinel-") as folder:
        file = Path(folder, "sentinel.conf")
        file.write_text("\n".join(lines) + "\n")
        binary = cache_binary()
        assert binary is not None
        arguments = [binary, str(file), "--sentinel", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
        server = Server(port, process, {"password": password} if password else {})
        try:
            eventually(server.answers, "Sentinel answers")
            yield server
        finally:
            server.kill()


def _is_linked(replica: Server) -> bool:
    with replica.client() as client:
        return bool(client.info("replication").get("master_link_status") == "up")


def _knows_replica(sentinel: Server) -> bool:
    with sentinel.client() as client:
        return len(client.sentinel_slaves(SERVICE)) == 1


@dataclass(frozen=True)
class Cluster:
    """Three primaries; the first has a replica."""

    url: str
    primaries: tuple[Server, ...]
    replica: Server


@contextmanager
def cluster_of_three() -> Iterator[Cluster]:
    """Run a cluster; the last third of the slots is the third primary's."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(DOWN_MS), "--repl-diskless-sync-delay", "0")
    with ExitStack() as stack:
        ports = free_ports(8)
        buses = {port: str(bus) for port, bus in zip(ports[:4], ports[4:], strict=True)}
        nodes = [
            stack.enter_context(running_server(port, *options, "--cluster-port", bus)) for port, bus in buses.items()
        ]
        *primaries, replica = nodes
        bounds = [0, 5461, 10923, 16384]
        for index, node in enumerate(primaries):
            with node.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[index], bounds[index + 1] - 1)
        with primaries[0].client() as client:
            for node in nodes[1:]:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, buses[node.port])
            first = client.execute_command("CLUSTER", "MYID").decode()
        eventually(lambda: all(_sees(node, len(nodes)) for node in nodes), "the nodes know each other")
        with replica.client() as client:
            client.execute_command("CLUSTER", "REPLICATE", first)
        eventually(lambda: _is_linked(replica), "the replica has what its primary has")
        eventually(lambda: all(_is_whole(node) for node in nodes), "every node knows that all slots are served")
        yield Cluster(f"redis+cluster://127.0.0.1:{ports[2]},127.0.0.1:{ports[1]}", tuple(primaries), replica)


def _sees(node: Server, count: int) -> bool:
    return int(_cluster_info(node)["cluster_known_nodes"]) == count


def _is_whole(node: Server) -> bool:
    return _cluster_info(node)["cluster_state"] == "ok"


def _cluster_info(node: Server) -> Mapping[str, str]:
    with node.client() as client:
        shown: Mapping[str, str] = client.execute_command("CLUSTER INFO")
        return shown
