"""Which services are up: polled regularly, for requests, for /health and for grpc.health.v1."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Generic, TypeVar

from grpc_health.v1 import health_pb2, health_pb2_grpc

from autoglm.common.deadlines import Deadline
from autoglm.common.errors import DeadlineExceeded, MeshError, ModalityUnavailable, NotFound, RateLimited
from autoglm.common.modalities import MEDIA_MODALITIES, MODALITY_NAMES
from autoglm.gateway.context import RequestContext
from autoglm.gateway.redis_store import RedisStore
from autoglm.gateway.settings import Settings
from autoglm.gateway.upstream import Mesh, absent, starting, unavailable
from autoglm.v1.decoder_pb2 import DecoderServiceDescribeResponse
from autoglm.v1.embedding_pb2 import EncoderInfo
from autoglm.v1.modality_pb2 import MODALITY_TEXT, Modality

logger = logging.getLogger("autoglm.gateway.health")

PATIENCE = 3  # consecutive polls that a busy service may miss before it counts as down
START_SHARE = 0.9  # of the time that is left, for an encoder to start: the rest is for the error to arrive

T = TypeVar("T")


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1. A name that was never set, or set to SERVICE_UNKNOWN, is unknown.

    The servicer of grpcio-health-checking 1.80 is not used: when one watcher of a name leaves, the others get no more
    updates.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, Any] = {}
        self._changed = asyncio.Condition()
        self._closed = False

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """Return a status; raises NotFound for an unknown name."""
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFound(f"there is no health of a service {request.service[:200]!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Send a status now and after each change; a slow reader may miss short-lived ones."""
        told = None
        while True:
            async with self._changed:
                while (status := self._status(request.service)) == told:
                    await self._changed.wait()
                told = status
            await context.write(health_pb2.HealthCheckResponse(status=told))

    async def set(self, name: str, status: Any) -> None:
        """Set the status of a name, unless the server is shutting down."""
        async with self._changed:
            if not self._closed:
                self._statuses[name] = status
                self._changed.notify_all()

    async def enter_graceful_shutdown(self) -> None:
        """Set every name to NOT_SERVING for good."""
        async with self._changed:
            self._closed = True
            self._statuses = dict.fromkeys(self._statuses, health_pb2.HealthCheckResponse.NOT_SERVING)
            self._changed.notify_all()

    def _status(self, name: str) -> Any:
        return self._statuses.get(name, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)


class Watched(Generic[T]):
    """One service: whether it is deployed, its last description of itself, and whether it is up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.deployed = True
        self.info: T | None = None
        self.up = False
        self._misses = 0
        self._logged = ""

    def found(self, deployed: bool) -> None:
        """Record whether Serve has this application, up or down."""
        if self.deployed != deployed:
            self.deployed, self.up, self._logged = deployed, False, ""
            logger.info("application %s is %s", self.name, "deployed" if deployed else "not deployed")

    async def ask(self, describe: Callable[[], Awaitable[T]]) -> None:
        """Record how the service describes itself. One that is full or slow stays up for a few polls."""
        try:
            self._note(await describe())
            self.up, self._misses = True, 0
        except (RateLimited, DeadlineExceeded):
            self._misses += 1
            self.up = self.up and self._misses < PATIENCE
        except MeshError:
            self.up = False
        if self._logged != self.status:
            self._logged = self.status
            logger.log(logging.INFO if self.up else logging.WARNING, "%s is %s", self.name, self.status)

    @property
    def status(self) -> str:
        """`up` or `down`."""
        return "up" if self.up else "down"

    def _note(self, info: T) -> None:
        self.info = info


class WatchedEncoder(Watched[EncoderInfo]):
    """An encoder, which can be idle: scaled to zero, it is up, and its next request starts a replica. `info` is then
    that of its last replica."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._idle = False

    @property
    def idle(self) -> bool:
        """Whether no replica runs, for want of requests."""
        return self.up and self._idle

    @property
    def status(self) -> str:
        """`up`, `idle` or `down`."""
        return "idle" if self.idle else super().status

    def forget(self) -> None:
        """Forget what the last replica said while none runs: the next one may have other weights."""
        if self.idle:
            self.info = None

    def _note(self, info: EncoderInfo) -> None:
        self._idle = info.idle
        if not info.idle:
            self.info = info


class MeshState:
    """The last known state of each service. `run` keeps it current; requests wait only for the first poll."""

    def __init__(self, mesh: Mesh, redis: RedisStore | None, settings: Settings) -> None:
        self.grpc_health = Health()
        self._mesh, self._redis, self._settings = mesh, redis, settings
        self._decoder = Watched[DecoderServiceDescribeResponse]("decoder")
        self._encoders = {row.number: WatchedEncoder(row.application) for row in MEDIA_MODALITIES}
        self._polled = asyncio.Event()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Poll until cancelled."""
        await self._publish()
        while True:
            self._wake.clear()
            await self.poll()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_interval):
                    await self._wake.wait()

    async def poll(self) -> None:
        """Ask Serve once which services are deployed, and each service for its description."""
        await self._find()
        context = self._context()
        encoders = [
            service.ask(partial(self._mesh.describe_encoder, m, context)) for m, service in self._deployed.items()
        ]
        pings = [] if self._redis is None else [self._redis.ping()]
        before = self._decoder.info
        await asyncio.gather(self._decoder.ask(partial(self._mesh.describe_decoder, context)), *encoders, *pings)
        self._compare(before)
        await self._publish()
        self._polled.set()

    def suspect(self) -> None:
        """Poll now, because a service just failed."""
        self._wake.set()

    async def decoder(self) -> DecoderServiceDescribeResponse:
        """Return the decoder's last description, even if it is down; raises UpstreamUnavailable if there is none."""
        await self._polled.wait()
        if self._decoder.info is None:
            raise unavailable("decoder")
        return self._decoder.info

    async def require(self, modality: Modality.ValueType) -> None:
        """Raise ModalityUnavailable, without retry_after, when the modality's encoder is not deployed."""
        await self._polled.wait()
        if modality not in self._deployed:
            raise absent(modality)

    async def encoder(self, modality: Modality.ValueType, context: RequestContext) -> EncoderInfo:
        """Return an encoder's last description; raises ModalityUnavailable while it is not deployed, down or not usable
        with the bundle. One that is idle and has none is started before the deadline of `context`."""
        await self.require(modality)
        decoder, service = await self.decoder(), self._encoders[modality]
        if modality not in decoder.modalities:
            raise ModalityUnavailable(f"bundle {decoder.bundle} does not support {MODALITY_NAMES[modality]} input")
        if service.idle and service.info is None:
            async with self.while_starting(modality, context):
                service.info = await self._mesh.describe_encoder(modality, context, start=True)
        if service.info is None or not service.up:
            raise unavailable(service.name)
        return service.info

    @contextlib.asynccontextmanager
    async def while_starting(self, modality: Modality.ValueType, context: RequestContext) -> AsyncIterator[None]:
        """Give an idle encoder nearly all the time until the deadline of `context`; raises ModalityUnavailable when the
        block has not ended then."""
        left = context.deadline.remaining()
        limit = left * START_SHARE if left is not None and self._encoders[modality].idle else None
        try:
            async with asyncio.timeout(limit):
                yield
        except TimeoutError:
            raise starting(modality) from None

    @property
    def modalities(self) -> list[Modality.ValueType]:
        """The modalities that can be used now."""
        understood = self._decoder.info.modalities if self._decoder.info and self._decoder.up else ()
        return [m for m in understood if m == MODALITY_TEXT or self._encoders[m].up]

    @property
    def ready(self) -> bool:
        """Whether text requests can be answered."""
        return self._decoder.up

    def applications(self) -> dict[str, str]:
        """Return `up`, `idle` or `down` for each application of this deployment."""
        encoders = {service.name: service.status for service in self._deployed.values()}
        return {self._decoder.name: self._decoder.status} | encoders

    def report(self) -> dict[str, str]:
        """Return the same for each dependency, or `off` for an unused Redis."""
        return self.applications() | {"redis": "off" if self._redis is None else "up" if self._redis.up else "down"}

    def descriptions(self) -> dict[str, dict[str, str]]:
        """Return what each application that has been up last said of itself: version, bundle, revision, device and
        engine."""
        encoders = {each.name: _described(each.info, "torch") for each in self._deployed.values() if each.info}
        decoder = self._decoder.info
        return encoders if decoder is None else encoders | {self._decoder.name: _described(decoder, decoder.engine)}

    async def drain(self) -> None:
        """Report to health watchers that this process accepts no more work."""
        await self.grpc_health.enter_graceful_shutdown()

    @property
    def _deployed(self) -> dict[Modality.ValueType, Watched[EncoderInfo]]:
        return {modality: service for modality, service in self._encoders.items() if service.deployed}

    async def _find(self) -> None:
        """Update which encoders are deployed; if Serve does not answer, its last answer stays valid."""
        with contextlib.suppress(MeshError):
            names = await self._mesh.applications(self._context())
            if self._decoder.name in names:  # otherwise Serve is starting or stopping
                for service in self._encoders.values():
                    service.found(service.name in names)

    def _compare(self, before: DecoderServiceDescribeResponse | None) -> None:
        """Forget what idle encoders said when the decoder or its fusion has other weights than `before`: their own are
        likely to be others too, and embeddings in the cache are then no longer theirs."""
        now = self._decoder.info
        if before and now and (before.revision, before.fusion_revision) != (now.revision, now.fusion_revision):
            for service in self._encoders.values():
                service.forget()

    def _context(self) -> RequestContext:
        return RequestContext("poll", Deadline.after(self._settings.poll_timeout))

    async def _publish(self) -> None:
        up, deployed = self.modalities, (MODALITY_TEXT, *self._deployed)
        await self.grpc_health.set("", _status(self.ready, True))
        for m in (MODALITY_TEXT, *self._encoders):
            await self.grpc_health.set(f"autoglm.v1.{MODALITY_NAMES[m]}", _status(m in up, m in deployed))


def _described(info: EncoderInfo | DecoderServiceDescribeResponse, engine: str) -> dict[str, str]:
    return {
        "version": info.version,
        "bundle": info.bundle,
        "revision": info.revision,
        "device": info.device,
        "engine": engine,
    }


def _status(up: bool, deployed: bool) -> Any:
    known = health_pb2.HealthCheckResponse
    return known.SERVING if up else known.NOT_SERVING if deployed else known.SERVICE_UNKNOWN
