"""What is up: a poll of every service, kept for the requests, for /health and for grpc.health.v1."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from typing import Generic, TypeVar

from grpc_health.v1 import health, health_pb2

from autoglm.common.deadlines import Deadline
from autoglm.common.errors import DeadlineExceeded, MeshError, ModalityUnavailable, RateLimited
from autoglm.gateway.cache import RedisTier
from autoglm.gateway.conversation import MODALITY_NAMES, Call
from autoglm.gateway.settings import Settings
from autoglm.gateway.upstream import Mesh, unavailable
from autoglm.v1.decoder_pb2 import DecoderServiceDescribeResponse
from autoglm.v1.embedding_pb2 import EncoderInfo
from autoglm.v1.modality_pb2 import MODALITY_AUDIO, MODALITY_IMAGE, MODALITY_TEXT, Modality

logger = logging.getLogger("autoglm.gateway.health")

PATIENCE = 3  # polls in a row that a busy service may leave unanswered before it counts as down

T = TypeVar("T")


class Watched(Generic[T]):
    """One service: what it last said of itself, and whether it is up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.info: T | None = None
        self.up = False
        self._misses = 0
        self._logged: bool | None = None

    async def ask(self, answer: Awaitable[T]) -> None:
        """Take in what the service says; a full or slow one stays up for a while."""
        try:
            self.info, self.up, self._misses = await answer, True, 0
        except (RateLimited, DeadlineExceeded):
            self._misses += 1
            self.up = self.up and self._misses < PATIENCE
        except MeshError:
            self.up = False
        if self._logged != self.up:
            self._logged = self.up
            logger.log(logging.INFO if self.up else logging.WARNING, "%s is %s", self.name, self.status)

    @property
    def status(self) -> str:
        """`up` or `down`."""
        return "up" if self.up else "down"


class MeshState:
    """The last word of each service. `run` keeps it true; a request waits for no poll but the first."""

    def __init__(self, mesh: Mesh, redis: RedisTier | None, settings: Settings) -> None:
        self.grpc_health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._mesh, self._redis, self._settings = mesh, redis, settings
        self._decoder = Watched[DecoderServiceDescribeResponse]("decoder")
        self._encoders: dict[Modality, Watched[EncoderInfo]] = {
            MODALITY_IMAGE: Watched("vision"),
            MODALITY_AUDIO: Watched("speech"),
        }
        self._polled = asyncio.Event()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Poll until cancelled."""
        await self._tell_health()
        while True:
            self._wake.clear()
            await self.poll()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_interval):
                    await self._wake.wait()

    async def poll(self) -> None:
        """Ask every service how it is, once."""
        call = Call("poll", Deadline.after(self._settings.poll_timeout))
        encoders = [service.ask(self._mesh.describe_encoder(m, call)) for m, service in self._encoders.items()]
        pings = [] if self._redis is None else [self._redis.ping()]
        await asyncio.gather(self._decoder.ask(self._mesh.describe_decoder(call)), *encoders, *pings)
        await self._tell_health()
        self._polled.set()

    def suspect(self) -> None:
        """Poll at once, because a service just failed."""
        self._wake.set()

    async def decoder(self) -> DecoderServiceDescribeResponse:
        """Return what the decoder last said, be it down since; raises UpstreamUnavailable when it never spoke."""
        await self._polled.wait()
        if self._decoder.info is None:
            raise unavailable("decoder")
        return self._decoder.info

    async def encoder(self, modality: Modality) -> EncoderInfo:
        """Return what an encoder last said; raises ModalityUnavailable while it is down or of no use."""
        decoder, service = await self.decoder(), self._encoders[modality]
        if modality not in decoder.modalities:
            raise ModalityUnavailable(f"bundle {decoder.bundle} does not understand {MODALITY_NAMES[modality]} input")
        if service.info is None or not service.up:
            raise unavailable(service.name)
        return service.info

    @property
    def modalities(self) -> list[Modality]:
        """What can be understood at this moment."""
        understood = self._decoder.info.modalities if self._decoder.info and self._decoder.up else ()
        return [m for m in understood if m == MODALITY_TEXT or self._encoders[m].up]

    @property
    def ready(self) -> bool:
        """Whether text can be answered."""
        return self._decoder.up

    def report(self) -> dict[str, str]:
        """Return `up`, `down` or, for a Redis that is not used, `off`, for each dependency."""
        encoders = {service.name: service.status for service in self._encoders.values()}
        return (
            {"decoder": self._decoder.status}
            | encoders
            | {"redis": "off" if self._redis is None else "up" if self._redis.up else "down"}
        )

    async def drain(self) -> None:
        """Tell health watchers that this process takes no more work."""
        await self.grpc_health.enter_graceful_shutdown()

    async def _tell_health(self) -> None:
        up = self.modalities
        states = {f"autoglm.v1.{MODALITY_NAMES[m]}": m in up for m in (MODALITY_TEXT, *self._encoders)}
        for name, serving in ({"": self.ready} | states).items():
            status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
            await self.grpc_health.set(name, status)
