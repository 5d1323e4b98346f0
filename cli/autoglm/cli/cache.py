"""The embedding cache of a single machine: a Redis or Valkey server in memory, on a Unix socket."""

import subprocess
import time
from pathlib import Path

from autoglm.cli import processes
from autoglm.cli.checks import cache_binary
from autoglm.cli.processes import StartError

MEMORY = "256mb"


class CacheServer:
    """A server that writes nothing to disk and evicts the least recently used entries beyond `MEMORY`."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "cache.sock"
        self.child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address, in the form of AUTOGLM_REDIS_URL."""
        return f"unix://{self._socket}"

    @property
    def died(self) -> bool:
        """Whether the server was started and has ended."""
        return self.child is not None and self.child.poll() is not None

    def start(self) -> str | None:
        """Start the server and return its binary, or None if this machine has none; raises StartError."""
        binary = cache_binary()
        if binary is None:
            return None
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "600",
            "maxmemory": MEMORY,
            "maxmemory-policy": "allkeys-lru",
            "save": "",
            "appendonly": "no",
            "dir": str(self._socket.parent),
            "logfile": str(self._socket.parent / "cache.log"),
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.child = processes.start([binary, *arguments])
        self._wait(binary)
        return binary

    def _wait(self, binary: str) -> None:
        limit = time.monotonic() + 10
        while not self._socket.exists():
            if self.child is None or self.child.poll() is not None or time.monotonic() > limit:
                raise StartError(f"the cache {binary} does not start: set AUTOGLM_REDIS_URL to your own server")
            time.sleep(0.02)
