"""Runs a mesh for a limited time: `autoglm serve` as a child process on free ports."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from autoglm.cli import processes
from autoglm.cli.isolation import LOOPBACK, free_ports
from autoglm.cli.processes import StartError
from autoglm.common.bundle import chosen_bundle

AUTOGLM = (sys.executable, "-m", "autoglm.cli.main")
START_SECONDS = 240
STOP_SECONDS = 40
READY = "Ready in "


@dataclass(frozen=True, slots=True)
class LocalMesh:
    """A mesh on loopback, in a child process that prints to `log`."""

    process: subprocess.Popen[bytes]
    log: Path
    http_port: int
    grpc_port: int

    @classmethod
    def start(cls, log: Path, *arguments: str, **environment: str) -> Self:
        """Start `autoglm serve` with `arguments` without waiting for it; call this in the main thread.

        Of our own AUTOGLM_ variables only AUTOGLM_BUNDLE is passed on: the others (keys, a Redis) belong to another
        mesh. `environment` is added.
        """
        http_port, grpc_port = free_ports(2)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AUTOGLM_")}
        own = {
            "AUTOGLM_BUNDLE": str(chosen_bundle()),
            "AUTOGLM_HOST": LOOPBACK,
            "AUTOGLM_HTTP_PORT": str(http_port),
            "AUTOGLM_GRPC_PORT": str(grpc_port),
        }
        with log.open("wb") as file:
            command = [*AUTOGLM, "serve", *arguments]
            process = processes.start(command, inherited | own | environment, stdout=file, stderr=subprocess.STDOUT)
        return cls(process, log, http_port, grpc_port)

    @property
    def http_url(self) -> str:
        """The root of the HTTP API, without a slash at its end."""
        return f"http://{LOOPBACK}:{self.http_port}"

    def lines(self) -> list[str]:
        """Return what it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def wait(self) -> None:
        """Wait until the mesh is ready; raises StartError if it ends before that or takes too long."""
        limit = time.monotonic() + START_SECONDS
        while not any(READY in line for line in self.lines()):
            if self.process.poll() is not None:
                raise StartError(f"the mesh does not start: {self._last_line()}")
            if time.monotonic() > limit:
                raise StartError(f"the mesh is not ready after {START_SECONDS} s: {self._last_line()}")
            time.sleep(0.1)

    def end(self) -> None:
        """Stop the mesh, after `STOP_SECONDS` by SIGKILL."""
        processes.end(self.process, STOP_SECONDS, threading.Event())

    def _last_line(self) -> str:
        return next((line for line in reversed(self.lines()) if line.strip()), "it printed nothing")


@contextmanager
def running_mesh() -> Iterator[LocalMesh]:
    """Run a mesh that is ready, inside the block; raises StartError if it does not start."""
    with tempfile.NamedTemporaryFile(prefix="mesh-", suffix=".log") as log:
        mesh = LocalMesh.start(Path(log.name))
        try:
            mesh.wait()
            yield mesh
        finally:
            mesh.end()
