"""A mesh for as long as it is needed: `autoglm serve` as a child on free ports."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from autoglm.cli import processes
from autoglm.cli.isolation import LOOPBACK, free_ports
from autoglm.cli.processes import StartError

START_SECONDS = 240
STOP_SECONDS = 40
READY = "Ready in "


@contextmanager
def running_mesh() -> Iterator[str]:
    """Run a mesh inside the block and give its HTTP address; raises StartError when it does not start."""
    http_port, grpc_port = free_ports(2)
    options = ("--host", LOOPBACK, "--http-port", str(http_port), "--grpc-port", str(grpc_port))
    command = [sys.executable, "-m", "autoglm.cli.main", "serve", *options]
    # Settings of the surroundings (keys, a Redis) belong to the mesh of whoever set them.
    settings = {name: value for name, value in os.environ.items() if name == "AUTOGLM_BUNDLE" or name[:8] != "AUTOGLM_"}
    child = processes.start(command, settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        _wait(child)
        yield f"http://{LOOPBACK}:{http_port}"
    finally:
        processes.end(child, STOP_SECONDS, threading.Event())


def _wait(child: subprocess.Popen[bytes]) -> None:
    """Return once the mesh says that it is ready; a thread goes on reading what it prints."""
    assert child.stdout is not None
    output = _Output(child.stdout)
    threading.Thread(target=output.read, name="mesh output", daemon=True).start()
    if not output.settled.wait(START_SECONDS):
        raise StartError(f"the mesh is not ready after {START_SECONDS} s: {output.last}")
    if not output.ready:
        raise StartError(f"the mesh does not start: {output.last}")


class _Output:
    """Reads what the mesh prints, and tells when it is ready or has ended."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.settled = threading.Event()
        self.ready = False
        self.last = "it said nothing"

    def read(self) -> None:
        """Read to the end."""
        for line in self._source:
            self.last = line.decode(errors="replace").strip() or self.last
            if READY in self.last:
                self.ready = True
                self.settled.set()
        self.settled.set()
