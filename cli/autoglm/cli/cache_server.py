"""The embedding cache of a single machine: a Redis or Valkey server in memory, on a Unix socket."""

import subprocess
import time
from pathlib import Path

from autoglm.cli import processes
from autoglm.cli.processes import StartError

MEMORY = "256mb"


class CacheServer:
    """A server that writes nothing to disk and evicts the least recently used entries beyond `MEMORY`."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._binary = binary
        self._socket = folder / "cache.sock"

    @property
    def url(self) -> str:
        """The address, in the form of AUTOGLM_REDIS_URL."""
        return f"unix://{self._socket}"

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server without waiting for it."""
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
        return processes.start([self._binary, *arguments])

    def wait(self, server: subprocess.Popen[bytes]) -> None:
        """Wait until the first `server` listens; raises StartError if it ends before that or takes too long."""
        limit = time.monotonic() + 10
        while not self._socket.exists():
            if server.poll() is not None or time.monotonic() > limit:
                raise StartError(f"the cache {self._binary} does not start: set AUTOGLM_REDIS_URL to your own server")
            time.sleep(0.02)
