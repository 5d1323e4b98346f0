"""Redis on a machine of its own: a master, its replica, and three Sentinels that put the one in the other's place."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis
from redis.exceptions import RedisError

from autoglm.cli.checks import cache_binary

from .network import REDIS, address, on
from .programs import start, until

SERVICE = "autoglm-cache"
SERVERS, SENTINELS = (6379, 6380), (26379, 26380, 26381)
DOWN_MS = 2000  # without an answer, after which Sentinel takes a server for dead
URL = f"redis+sentinel://{','.join(f'{address(REDIS)}:{port}' for port in SENTINELS)}/{SERVICE}"


@dataclass(slots=True)
class RedisServers:
    """The servers by port, and the Sentinels."""

    folder: Path
    _running: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self) -> None:
        """Start all, and return when Sentinel knows the replica."""
        first, second = SERVERS
        self._start(first, [])
        self._start(second, ["--replicaof", f"{address(REDIS)} {first}"])
        for port in SENTINELS:
            self._start_sentinel(port)
        for port in SENTINELS:
            until(lambda port=port: self._knows_all(port), "Sentinel knows the replica and the others")  # type: ignore[misc]

    def master(self) -> int:
        """Return the port of the server that Sentinel names."""
        with client(SENTINELS[0]) as sentinel:
            return int(sentinel.sentinel_get_master_addr_by_name(SERVICE)[1])

    def process(self, port: int) -> psutil.Process:
        """Return the process of a server."""
        (found,) = psutil.Process(self._running[port].pid).children() or [psutil.Process(self._running[port].pid)]
        return found

    def kill_master(self) -> int:
        """Kill the master; return its port."""
        port = self.master()
        self.process(port).kill()
        self._running.pop(port).wait()
        return port

    def start_again(self, port: int) -> None:
        """Start a server that was killed, as the replica of the one that took its place."""
        self._start(port, ["--replicaof", f"{address(REDIS)} {self.master()}"])

    def configure(self, port: int, **settings: str) -> None:
        """Change settings of a server."""
        with client(port) as server:
            server.config_set(*(word for pair in settings.items() for word in pair))

    def is_whole(self) -> bool:
        """Return whether the master answers and its replica has what it has."""
        try:
            with client(self.master()) as server:
                return int(server.info("replication")["connected_slaves"]) == 1
        except RedisError:
            return False

    def _start(self, port: int, arguments: Sequence[str]) -> None:
        fixed = ["--port", str(port), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""]
        more = ["--dir", str(self.folder), "--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"]
        quick = ["--repl-diskless-sync-delay", "0"]
        self._launch(port, [*fixed, *more, *quick, *arguments])
        until(lambda: answers(port), f"Redis answers at port {port}")

    def _start_sentinel(self, port: int) -> None:
        lines = [
            f"port {port}",
            "protected-mode no",
            f"sentinel monitor {SERVICE} {address(REDIS)} {SERVERS[0]} 2",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_MS}",
            f"sentinel failover-timeout {SERVICE} 5000",
        ]
        file = self.folder / f"sentinel-{port}.conf"
        file.write_text("\n".join(lines) + "\n")
        self._launch(port, [str(file), "--sentinel"])
        until(lambda: answers(port), f"Sentinel answers at port {port}")

    def _launch(self, port: int, arguments: Sequence[str]) -> None:
        binary = cache_binary()
        assert binary is not None
        log = self.folder / f"redis-{port}.log"
        self._running[port] = start(on(REDIS, binary, *arguments), log)

    def _knows_all(self, port: int) -> bool:
        with client(port) as sentinel:
            return (
                len(sentinel.sentinel_slaves(SERVICE)) == 1
                and len(sentinel.sentinel_sentinels(SERVICE)) == len(SENTINELS) - 1
            )


def client(port: int) -> redis.Redis:
    """Return a client of a server or a Sentinel."""
    return redis.Redis(address(REDIS), port, socket_timeout=5, socket_connect_timeout=5)


def answers(port: int) -> bool:
    """Return whether a server answers."""
    try:
        with client(port) as server:
            return bool(server.ping())
    except RedisError:
        return False
