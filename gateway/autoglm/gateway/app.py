"""The gateway process: the HTTP server and the gRPC server on one event loop.

Run as `python -m autoglm.gateway.app`, with settings from AUTOGLM_ variables. On SIGTERM or SIGINT, health reports
NOT_SERVING, new connections are refused, and running requests get `drain_timeout` seconds to finish. Those that do not,
or that still run at a second signal, end with a 503.
"""

import asyncio
import errno
import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import grpc
import uvicorn
import uvloop
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pydantic import ValidationError

from autoglm.common import environment, tracing
from autoglm.common.logs import log_to_stderr
from autoglm.common.watchdog import watch
from autoglm.gateway.admission.admission import Admission
from autoglm.gateway.admission.byte_budget import ByteBudget
from autoglm.gateway.admission.keys import Keys
from autoglm.gateway.admission.quota import Quota
from autoglm.gateway.assistant import Assistant
from autoglm.gateway.backend import Backend
from autoglm.gateway.drain import LAST_SECONDS, Drain
from autoglm.gateway.embedding_servicer import EmbeddingServicer
from autoglm.gateway.file_watcher import FileError, FileWatcher
from autoglm.gateway.grpc_calls import CallInterceptor
from autoglm.gateway.grpc_options import server_options
from autoglm.gateway.health import MeshState
from autoglm.gateway.http_protocol import http_protocol
from autoglm.gateway.media.cache import EmbeddingCache
from autoglm.gateway.media.fetch import Fetcher
from autoglm.gateway.mesh_metrics import MeshCollector
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.openai.app import create_app
from autoglm.gateway.pipeline import Pipeline
from autoglm.gateway.readers import ReaderPool
from autoglm.gateway.redis_store import RedisStore
from autoglm.gateway.servicer import ChatServicer, ModelServicer, TranscriptionServicer
from autoglm.gateway.settings import Settings, wrong_setting
from autoglm.gateway.tls import Certificate
from autoglm.gateway.upstream import Mesh
from autoglm.v1.chat_pb2_grpc import add_ChatServiceServicer_to_server
from autoglm.v1.embeddings_pb2_grpc import add_EmbeddingServiceServicer_to_server
from autoglm.v1.model_pb2_grpc import add_ModelServiceServicer_to_server
from autoglm.v1.transcription_pb2_grpc import add_TranscriptionServiceServicer_to_server

logger = logging.getLogger("autoglm.gateway")

KEEP_ALIVE_SECONDS = 75  # longer than clients and proxies keep a connection, so that they are the ones to close it
# For the event loop to wait for threads that run Python, instead of 5 ms at each of its turns.
SWITCH_SECONDS = 0.0005
PUBLIC_SERVICES = (
    "autoglm.v1.ChatService",
    "autoglm.v1.EmbeddingService",
    "autoglm.v1.ModelService",
    "autoglm.v1.TranscriptionService",
)


class PortTaken(Exception):
    """A port cannot be listened on; the message says in one line what to do."""


@dataclass(frozen=True, slots=True)
class BoundPorts:
    """Where a running gateway listens."""

    http_port: int
    grpc_port: int  # 0 with `grpc_socket`


def main(settings: Settings | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status, 1 with one line on stderr when it cannot start."""
    reviewed = environment.review(os.environ, reads=environment.GATEWAY)
    if reviewed.faults:
        print(f"autoglm gateway: {reviewed.faults[0]}", file=sys.stderr)
        return 1
    try:
        settings = settings or Settings()
        log_to_stderr(settings.log_level, settings.log_encoding)
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each form that cannot be read
        for warning in (*reviewed.warnings, *settings.warnings):
            logger.warning(warning)
        uvloop.run(_serve(settings))
    except ValidationError as error:
        print(f"autoglm gateway: invalid setting: {wrong_setting(error)}", file=sys.stderr)
        return 1
    except (PortTaken, FileError) as error:
        print(f"autoglm gateway: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(settings: Settings) -> None:
    stop, drain, loop = asyncio.Event(), Drain(), asyncio.get_running_loop()

    def signalled() -> None:
        if stop.is_set():
            drain.end()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    sys.setswitchinterval(SWITCH_SECONDS)
    readers = ReaderPool()
    readers.start()
    tracing.start("gateway")  # after the readers, whose process forks and must have no threads
    async with running(settings, drain, readers):
        _rare_full_collections()
        watch({"event loop": loop.call_soon_threadsafe})
        await stop.wait()
        logger.info("stopping: running requests have %.0f s to finish", settings.drain_timeout)
    tracing.stop()


def _rare_full_collections() -> None:
    """Run full garbage collections a tenth as often, and exclude the objects that exist now.

    A full collection stops every stream, for a tenth of a second with 512 open. It finds nothing, because finished
    requests leave no reference cycles.
    """
    gc.collect()
    gc.freeze()
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, 10 * old)


@asynccontextmanager
async def running(
    settings: Settings, drain: Drain | None = None, readers: ReaderPool | None = None
) -> AsyncIterator[BoundPorts]:
    """Run a gateway inside the block, and drain it at the end, until `drain` ends. It closes `readers`.

    Raises PortTaken when a port is in use, FileError when a file named by the settings cannot be used.
    """
    metrics, mesh, drain, readers = GatewayMetrics(), Mesh(settings), drain or Drain(), readers or ReaderPool()
    files = FileWatcher(metrics)
    keys = Keys(settings, files)
    certificate = Certificate(settings, files) if settings.ssl_certfile else None
    listener = _listen(settings)
    store = RedisStore(settings, metrics) if settings.redis_url.get_secret_value() else None
    cache = EmbeddingCache(settings, metrics, store)
    state = MeshState(mesh, store, settings)
    budget = ByteBudget(settings, metrics)
    fetcher = Fetcher(settings, metrics, budget)
    admission = Admission(settings, metrics, keys, Quota(store, metrics), budget)
    pipeline = Pipeline(mesh, cache, state, fetcher, metrics)
    metrics.registry.register(MeshCollector(state))
    assistant = Assistant(pipeline, fetcher, mesh, state, metrics, drain, settings.model_names)
    backend = Backend(settings, admission, assistant, state, metrics, drain, readers)
    work = (state.run(), files.run(settings.poll_interval), cache.run(settings.poll_interval))
    tasks = [asyncio.create_task(each) for each in work]
    try:
        async with (
            _grpc_server(backend, certificate) as (grpc_server, grpc_port),
            _http_server(backend, certificate, listener) as http_port,
        ):
            yield BoundPorts(http_port, grpc_port)
            await state.drain()
            # Both servers close at the same time; leaving the blocks waits for each.
            closing = asyncio.create_task(grpc_server.stop(settings.drain_timeout + LAST_SECONDS))
            ending = asyncio.get_running_loop().call_later(settings.drain_timeout, drain.end)
        await closing
        ending.cancel()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        readers.close()
        await fetcher.close()
        await cache.close()
        if store is not None:
            await store.close()
        await mesh.close()


def _listen(settings: Settings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.http_port), family=family, backlog=1024)
    except OSError as error:
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        remedy = "stop what uses it or set AUTOGLM_HTTP_PORT" if taken else "set AUTOGLM_HOST to one of this machine's"
        raise PortTaken(
            f"cannot listen on port {settings.http_port} of {settings.host} ({error.strerror}); {remedy}"
        ) from None


@asynccontextmanager
async def _http_server(
    backend: Backend, certificate: Certificate | None, listener: socket.socket
) -> AsyncIterator[int]:
    port = listener.getsockname()[1]
    scheme = "http" if certificate is None else "https"
    logger.info("Starting FastAPI server at %s://%s:%d", scheme, backend.settings.host, port)
    server = _HttpServer(
        uvicorn.Config(
            create_app(backend),
            access_log=False,
            lifespan="off",
            log_config=None,
            forwarded_allow_ips=backend.settings.forwarded_allow_ips,
            server_header=False,
            ssl_context_factory=None if certificate is None else lambda *_: certificate.context(),
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(backend.settings.drain_timeout + LAST_SECONDS),
            http=http_protocol(backend),
            ws="none",
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await server.listening.wait()
    logger.info("OpenAI-compatible endpoint enabled at /v1/chat/completions")
    try:
        yield port
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def _grpc_server(backend: Backend, certificate: Certificate | None) -> AsyncIterator[tuple[grpc.aio.Server, int]]:
    settings = backend.settings
    options = (
        *server_options(settings),
        ("grpc.so_reuseport", 0),  # otherwise a second gateway would silently share the port
    )
    server = grpc.aio.server(interceptors=(CallInterceptor(backend),), options=options)
    add_ChatServiceServicer_to_server(ChatServicer(backend), server)
    add_EmbeddingServiceServicer_to_server(EmbeddingServicer(backend), server)
    add_ModelServiceServicer_to_server(ModelServicer(backend), server)
    add_TranscriptionServiceServicer_to_server(TranscriptionServicer(backend), server)
    health_pb2_grpc.add_HealthServicer_to_server(backend.state.grpc_health, server)
    reflection.enable_server_reflection((*PUBLIC_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = _open_grpc_port(server, settings, certificate)
    await server.start()
    try:
        yield server, port
    finally:
        await server.stop(settings.drain_timeout + LAST_SECONDS)


def _open_grpc_port(server: grpc.aio.Server, settings: Settings, certificate: Certificate | None) -> int:
    """Have `server` listen where `settings` say; return its port, 0 for a Unix socket. Raises PortTaken."""
    if settings.grpc_socket:
        return _open_grpc_socket(server, settings.grpc_socket)
    try:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        if certificate is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, certificate.grpc_credentials())
    except RuntimeError:
        raise PortTaken(
            f"cannot listen on port {settings.grpc_port}; stop what uses it or set AUTOGLM_GRPC_PORT"
        ) from None
    logger.info("gRPC services at %s:%d%s", settings.host, port, "" if certificate is None else " over TLS")
    return port


def _open_grpc_socket(server: grpc.aio.Server, path: str) -> int:
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError:
        raise PortTaken(f"cannot listen on {path}: set AUTOGLM_GRPC_SOCKET to a path of at most 107 bytes") from None
    logger.info("gRPC services at %s, for a proxy", path)
    return 0


class _HttpServer(uvicorn.Server):
    """uvicorn that leaves signals to us and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


if __name__ == "__main__":
    sys.exit(main())
