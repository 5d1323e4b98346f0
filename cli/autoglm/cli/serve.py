"""`autoglm serve`: runs the whole mesh on this machine; nothing is left of it when it stops."""

import http.client
import json
import logging
import os
import secrets
import select
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import typer

from autoglm.cli import checks, isolation, processes
from autoglm.cli.cache_server import CacheServer
from autoglm.cli.options import BundleFolder, GrpcPort, Host, HttpPort, Modalities
from autoglm.cli.private_folder import private_folder
from autoglm.cli.processes import Signals, StartError, TryAgain
from autoglm.cli.supervision import SupervisedChild, watch
from autoglm.common.bundle import Bundle, chosen_bundle
from autoglm.common.logs import formatter, log_config
from autoglm.common.modalities import ApplicationName

DRAIN_SECONDS = 25
STOP_SECONDS = 2
GATEWAY_SECONDS = 60
OTHER_SERVICES = {
    "AUTOGLM_GRPC_SOCKET",
    "AUTOGLM_SERVE_ADDRESS",
    "AUTOGLM_SERVE_SSL_CA_CERTS",
    "AUTOGLM_SERVE_SSL_CERTFILE",
    "AUTOGLM_SERVE_SSL_KEYFILE",
}
RAY_STARTS = 3


class Stopped(Exception):
    """SIGINT or SIGTERM asked the mesh to stop."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The options of the command line."""

    bundle: Path
    modalities: str
    host: str
    http_port: int
    grpc_port: int


def serve(
    bundle: BundleFolder = None,
    modalities: Modalities = "",
    host: Host = "0.0.0.0",
    http_port: HttpPort = 8000,
    grpc_port: GrpcPort = 50051,
) -> None:
    """Start the whole mesh on this machine: cache, services and gateway. Ctrl-C stops it."""
    signals = Signals()
    signals.install()
    code = 0
    try:
        _ignore_other_services()
        with ExitStack() as stack:
            options = ServeOptions(bundle or chosen_bundle(), modalities, host, http_port, grpc_port)
            Supervisor(options, signals, stack).run()
    except Stopped:
        say("Stopped")
    except StartError as error:
        print(f"autoglm serve: {error}", file=sys.stderr)
        code = 1
    raise typer.Exit(code)


def _ignore_other_services() -> None:
    """Warn of the settings of a gateway with services or a proxy elsewhere, and drop them: these are our own."""
    for name in sorted(OTHER_SERVICES & os.environ.keys()):
        print(
            f"autoglm serve: warning: {name} has no effect: this command runs its own services and proxy",
            file=sys.stderr,
        )
        del os.environ[name]


def say(line: str) -> None:
    """Print one line of the log. A disk that is full, or a reader that has gone, does not end the mesh."""
    with suppress(OSError):
        record = logging.LogRecord("autoglm", logging.INFO, __file__, 0, line, None, None)
        print(formatter(log_config(os.environ).get("encoding", "TEXT")).format(record), flush=True)


class Supervisor:
    """Starts the parts in order, then watches them. `stack` stops everything that has started."""

    def __init__(self, options: ServeOptions, signals: Signals, stack: ExitStack) -> None:
        self._options = options
        self._signals = signals
        self._stack = stack
        self._children: list[SupervisedChild] = []

    def run(self) -> None:
        """Start the mesh and watch it; raises Stopped after a signal, StartError when a part fails for good."""
        started = time.monotonic()
        bundle, services = self._check()
        self._folder = self._stack.enter_context(_folder())
        self._start_cache()
        say(f"Loading model {bundle.name} from {bundle.root}")
        self._start_mesh(bundle, services, started)
        self._start_grpc_proxy()
        self._start_gateway()
        say(f"Ready in {time.monotonic() - started:.1f} s; stop with Ctrl-C")
        watch(self._mesh, self._children, self._pause, say)

    def _check(self) -> tuple[Bundle, tuple[ApplicationName, ...]]:
        checks.check_files(checks.gateway_settings())
        bundle, services = checks.open_bundle(self._options.bundle, self._options.modalities)
        checks.check_port(self._options.host, self._options.http_port, "--http-port or AUTOGLM_HTTP_PORT")
        checks.check_port(self._options.host, self._options.grpc_port, "--grpc-port or AUTOGLM_GRPC_PORT")
        checks.check_memory()
        return bundle, services

    def _start_cache(self) -> None:
        if os.environ.get("AUTOGLM_REDIS_URL"):
            return
        binary = checks.cache_binary()
        if binary is None:
            say("No Redis or Valkey found: embeddings are cached in the gateway only")
            return
        cache = CacheServer(binary, self._folder)
        child = SupervisedChild("The embedding cache", cache.start, say)
        self._children.append(child)
        cache.wait(child.process)
        os.environ["AUTOGLM_REDIS_URL"] = cache.url
        say(f"Embedding cache: {binary}")

    def _start_mesh(self, bundle: Bundle, services: Sequence[str], started: float) -> None:
        os.environ.setdefault("AUTOGLM_SERVE_TOKEN", secrets.token_hex(32))
        events, ports, services = self._start_ray(bundle, services)
        address = os.environ["AUTOGLM_SERVE_ADDRESS"] = f"{isolation.LOOPBACK}:{ports.ingress}"
        say(f"Starting services: {', '.join(services)} at {address} (logs in {self._folder})")
        say(f"Service metrics at http://{isolation.LOOPBACK}:{ports.metrics}/metrics")
        loaded = self._event(events)
        several = " (distributed mode)" if len(loaded["devices"]) > 1 else ""
        say(f"Devices: {', '.join(loaded['devices'])}{several}")
        say(f"INT8 quantization: {', '.join(loaded['int8']) or 'off'}")
        say(f"Model loaded successfully in {time.monotonic() - started:.1f} s")

    def _start_ray(self, bundle: Bundle, services: Sequence[str]) -> tuple[IO[bytes], isolation.Ports, Sequence[str]]:
        """Start Ray and the ingress, at most RAY_STARTS times; return the mesh's events, its ports and its services."""
        for _ in range(RAY_STARTS - 1):
            try:
                return self._try_ray(bundle, services)
            except TryAgain as error:
                say(f"{error}; trying again with other ports")
                processes.end(self._mesh, 0, self._signals.hurry)
                processes.end_descendants(STOP_SECONDS, but=self._own())
        return self._try_ray(bundle, services)

    def _try_ray(self, bundle: Bundle, services: Sequence[str]) -> tuple[IO[bytes], isolation.Ports, Sequence[str]]:
        ports = self._stack.enter_context(isolation.Ports.reserve())  # kept after a failure: the next try gets others
        command = [sys.executable, "-m", "autoglm.cli.mesh"]
        with (self._folder / "ray.log").open("ab") as log:
            self._mesh = processes.start(
                [*command, str(self._folder), str(ports.ingress), str(ports.block), *services],
                environment=isolation.environment(self._folder, bundle.root, ports),
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._stack.callback(processes.end, self._mesh, 0, self._signals.hurry)
        assert self._mesh.stdout is not None
        return self._mesh.stdout, ports, self._event(self._mesh.stdout)["services"]

    def _event(self, events: IO[bytes]) -> dict[str, Any]:
        """Return the next event of the mesh's process; raises StartError when it reports an error or ends."""
        while not select.select([events], [], [], 0.02)[0]:
            self._pause(0)
        line = events.readline()
        event = json.loads(line) if line else {"again": f"Ray does not start: {self._last_log_line()}"}
        if "again" in event:
            raise TryAgain(event["again"])
        if "error" in event:
            raise StartError(event["error"])
        return dict(event)

    def _last_log_line(self) -> str:
        lines = (self._folder / "ray.log").read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")

    def _start_grpc_proxy(self) -> None:
        """Start HAProxy at the gRPC port. It is stopped after the gateway, whose last calls go through it."""
        from autoglm.cli.grpc_proxy import GrpcProxy, SupervisedProxy

        options = self._options
        os.environ.update(
            AUTOGLM_HOST=options.host,
            AUTOGLM_HTTP_PORT=str(options.http_port),
            AUTOGLM_GRPC_PORT=str(options.grpc_port),
        )
        proxy = GrpcProxy(checks.gateway_settings(), self._folder)
        child = SupervisedProxy(proxy, say)
        self._children.append(child)
        self._stack.callback(lambda: processes.end(child.process, STOP_SECONDS, self._signals.hurry))
        proxy.wait(child.process)
        os.environ["AUTOGLM_GRPC_SOCKET"] = str(proxy.server_socket)
        say(f"HAProxy passes on gRPC from {options.host}:{options.grpc_port}")

    def _start_gateway(self) -> None:
        gateway = SupervisedChild("The gateway", _spawn_gateway, say)
        self._children.append(gateway)
        self._stack.callback(lambda: processes.end(gateway.process, DRAIN_SECONDS, self._signals.hurry))
        limit = time.monotonic() + GATEWAY_SECONDS
        while not self._is_ready():
            if (status := gateway.process.poll()) is not None:
                raise StartError(f"the gateway ended with status {status}; its last line above says why")
            if time.monotonic() > limit:
                raise StartError(f"the gateway is not ready after {GATEWAY_SECONDS} s; see /health/ready")
            self._pause(0.1)

    def _is_ready(self) -> bool:
        host = "127.0.0.1" if self._options.host in ("0.0.0.0", "::") else self._options.host
        if os.environ.get("AUTOGLM_SSL_CERTFILE"):
            return _speaks_tls(host, self._options.http_port)
        try:
            with urllib.request.urlopen(f"http://{host}:{self._options.http_port}/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError, http.client.HTTPException):  # the last: something else has the port
            return False

    def _own(self) -> list[int]:
        return [child.process.pid for child in self._children]

    def _pause(self, seconds: float) -> None:
        if self._signals.stop.wait(seconds):
            raise Stopped


def _spawn_gateway() -> subprocess.Popen[bytes]:
    # glibc then returns the memory of large bodies at once, instead of keeping up to 100 MB of it.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1024**2)}
    return processes.start([sys.executable, "-m", "autoglm.gateway.app"], environment)


def _speaks_tls(host: str, port: int) -> bool:
    """Return whether a gateway completes a TLS handshake.

    Its readiness cannot be asked for: it may require client certificates, and we have none. Requests that come
    before it knows the services wait.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the server is our own child
    try:
        with socket.create_connection((host, port), 5) as plain, context.wrap_socket(plain):
            return True
    except OSError:
        return False


@contextmanager
def _folder() -> Iterator[Path]:
    """Give the mesh's folder; at the end no process or folder is left."""
    processes.adopt_orphans()
    with private_folder() as folder:
        try:
            yield folder
        finally:
            say("Stopping")
            processes.end_descendants(STOP_SECONDS)
