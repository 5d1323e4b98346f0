"""A mesh of real parts: `autoglm serve` on free ports, and what can be seen of it from outside."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from autoglm.common.bundle import chosen_bundle

START_SECONDS = 240


@dataclass(frozen=True, slots=True)
class Mesh:
    """A running mesh."""

    process: subprocess.Popen[str]
    log: Path
    http_port: int
    grpc_port: int

    @property
    def http_url(self) -> str:
        """The root of the HTTP door, without a slash at its end."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_address(self) -> str:
        """The public gRPC door."""
        return f"127.0.0.1:{self.grpc_port}"

    def lines(self) -> list[str]:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8").splitlines()

    def descendants(self) -> list[psutil.Process]:
        """Every process below `autoglm serve`."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def running(self, part: str) -> psutil.Process | None:
        """Return the first process below whose command line has `part` in it, if any has."""
        for process in self.descendants():
            with suppress(psutil.NoSuchProcess):
                if part in " ".join(process.cmdline()):
                    return process
        return None

    def replica(self, application: str) -> psutil.Process:
        """The process of an application's replica."""
        title = f"ray::ServeReplica:{application}:"
        return next(process for process in self.descendants() if "".join(process.cmdline()).startswith(title))

    def gateway(self) -> psutil.Process:
        """The gateway's process."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "autoglm.gateway.app" in child.cmdline())

    @property
    def serve_address(self) -> str:
        """Ray Serve's gRPC ingress."""
        return self.gateway().environ()["AUTOGLM_SERVE_ADDRESS"]

    def to(self, application: str) -> tuple[tuple[str, str], ...]:
        """Metadata that a call to one of the services needs."""
        return (("application", application), ("authorization", f"Bearer {self.serve_token}"))

    @property
    def serve_token(self) -> str:
        """What the services want to see."""
        return self.gateway().environ()["AUTOGLM_SERVE_TOKEN"]

    @property
    def redis_url(self) -> str:
        """The embedding cache."""
        return self.gateway().environ()["AUTOGLM_REDIS_URL"]

    def wait(self) -> None:
        """Return when the mesh is ready; raises AssertionError with its log when it ends or takes too long."""
        limit = time.monotonic() + START_SECONDS
        while not any("Ready in" in line for line in self.lines()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < limit, self.log.read_text()
            time.sleep(0.1)
        with urllib.request.urlopen(f"{self.http_url}/health/ready", timeout=10) as answer:
            assert answer.status == 200

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask for a clean stop and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)


def free_ports(count: int) -> list[int]:
    """Return different ports that are free."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def command(*arguments: str) -> Sequence[str]:
    """Return the command line of `autoglm`."""
    return (sys.executable, "-m", "autoglm.cli.main", *arguments)


def text_bundle(folder: Path) -> Path:
    """Copy what the chosen bundle needs to read and write text; its manifest is for the caller to write."""
    for part in ("fusion", "decoder"):
        shutil.copytree(chosen_bundle() / part, folder / part)
    return folder


@contextmanager
def running_mesh(log: Path, *arguments: str, **environment: str) -> Iterator[Mesh]:
    """A mesh of its own, ready, and stopped at the end."""
    running = start_mesh(log, *arguments, **environment)
    try:
        running.wait()
        yield running
    finally:
        running.stop()


def start_mesh(log: Path, *arguments: str, **environment: str) -> Mesh:
    """Start `autoglm serve` with `arguments` on free ports; it is not ready yet."""
    http_port, grpc_port = free_ports(2)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("AUTOGLM_")} | {
        "AUTOGLM_BUNDLE": str(chosen_bundle()),
        "AUTOGLM_HOST": "127.0.0.1",
        "AUTOGLM_HTTP_PORT": str(http_port),
        "AUTOGLM_GRPC_PORT": str(grpc_port),
        "COLUMNS": "200",
    }
    with log.open("w") as file:
        process = subprocess.Popen(
            command("serve", *arguments),
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            env=variables | environment,
        )
    return Mesh(process, log, http_port, grpc_port)
