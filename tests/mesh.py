"""A mesh of real parts, as tests see it: `autoglm serve` on free ports, and what can be seen of it from outside."""

import json
import shutil
import signal
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from autoglm.cli.grpc_proxy import CONFIG
from autoglm.cli.local_mesh import AUTOGLM, LocalMesh
from autoglm.cli.processes import StartError
from autoglm.common.bundle import chosen_bundle

from .waiting import NET_SECONDS, eventually


class Mesh(LocalMesh):
    """A running mesh."""

    @property
    def grpc_address(self) -> str:
        """The address of the public gRPC API."""
        return f"127.0.0.1:{self.grpc_port}"

    def descendants(self) -> list[psutil.Process]:
        """Every process below `autoglm serve`."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def running(self, part: str) -> psutil.Process | None:
        """Return the first process below whose command line has `part` in it, if any has."""
        return next(self._all_running(part), None)

    def _all_running(self, part: str) -> Iterator[psutil.Process]:
        return self._all_that(lambda process: part in " ".join(process.cmdline()))

    def _all_that(self, are_meant: Callable[[psutil.Process], bool]) -> Iterator[psutil.Process]:
        for process in self.descendants():
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                if process.status() != psutil.STATUS_ZOMBIE and are_meant(process):
                    yield process

    def replicas(self, application: str) -> Sequence[psutil.Process]:
        """The processes of an application's replicas."""
        return list(self._all_running(f"ray::ServeReplica:{application}:"))

    def zombies(self) -> list[psutil.Process]:
        """The ended processes that `autoglm serve` has not reaped yet."""
        ended = list[psutil.Process]()
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if child.status() == psutil.STATUS_ZOMBIE:
                    ended.append(child)
        return ended

    def replica(self, application: str) -> psutil.Process:
        """The process of an application's only replica."""
        return self.replicas(application)[0]

    def gateway(self) -> psutil.Process:
        """The gateway's process; raises StopIteration while there is none."""
        return next(self._all_that(lambda process: "autoglm.gateway.app" in process.cmdline()))

    def caches(self) -> Sequence[psutil.Process]:
        """The process of the embedding cache, or none."""
        return list(self._all_that(lambda process: process.name() in ("valkey-server", "redis-server")))

    def cache(self) -> psutil.Process:
        """The process of the embedding cache, once it runs."""
        eventually(self.caches, "the cache runs")
        return self.caches()[0]

    def haproxy(self) -> psutil.Process:
        """The HAProxy of Ray Serve, not its manager."""
        return next(self._all_that(lambda p: p.name() == "haproxy" and CONFIG not in " ".join(p.cmdline())))

    def grpc_proxy(self) -> psutil.Process:
        """The HAProxy in front of the gateway's gRPC server: the process that the supervisor started."""
        return next(self._all_that(lambda p: CONFIG in " ".join(p.cmdline()) and p.ppid() == self.process.pid))

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
        try:
            super().wait()
        except StartError as error:
            raise AssertionError(self.log.read_text()) from error
        with urllib.request.urlopen(f"{self.http_url}/health/ready", timeout=NET_SECONDS) as answer:
            assert answer.status == 200

    def is_whole(self) -> bool:
        """Return whether the gateway says that every part that should run does."""
        try:
            with urllib.request.urlopen(f"{self.http_url}/health/ready", timeout=NET_SECONDS) as answer:
                return set(json.load(answer)["dependencies"].values()) == {"up"}
        except OSError:  # no connection, or 503
            return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask for a clean stop and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(NET_SECONDS)


def command(*arguments: str) -> Sequence[str]:
    """Return the command line of `autoglm`."""
    return (*AUTOGLM, *arguments)


def text_bundle(folder: Path) -> Path:
    """Copy what the chosen bundle needs to read and write text; its manifest is for the caller to write."""
    for part in ("fusion", "decoder"):
        shutil.copytree(chosen_bundle() / part, folder / part)
    return folder


@contextmanager
def running_mesh(log: Path, *arguments: str, **environment: str) -> Iterator[Mesh]:
    """A mesh of its own, ready, and stopped at the end."""
    running = Mesh.start(log, *arguments, **environment)
    try:
        running.wait()
        yield running
    finally:
        running.stop()
