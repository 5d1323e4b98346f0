"""What both doors share beside the pipeline: keys, places, names, metrics and the log."""

import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from autoglm.common.bundle import ALIAS
from autoglm.common.deadlines import Deadline
from autoglm.common.errors import (
    InvalidRequest,
    MeshError,
    NotFound,
    RateLimited,
    RequestTooLarge,
    UnsupportedMedia,
)
from autoglm.common.server import as_mesh_error
from autoglm.gateway.admission.byte_budget import Memory
from autoglm.gateway.admission.keys import Keys
from autoglm.gateway.admission.quota import Quota
from autoglm.gateway.conversation import Call, Conversation, Inputs, MediaPart
from autoglm.gateway.health import MeshState
from autoglm.gateway.media.fetch import Fetcher
from autoglm.gateway.metrics import Metrics
from autoglm.gateway.pipeline import Pipeline, Step
from autoglm.gateway.settings import Settings
from autoglm.gateway.upstream import Mesh
from autoglm.v1.decoder_pb2 import DecoderServiceEmbedResponse
from autoglm.v1.model_pb2 import ModelCard
from autoglm.v1.speech_pb2 import SpeechServiceTranscribeResponse

logger = logging.getLogger("autoglm.gateway.access")

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def new_call(request_id: str | None, traceparent: str | None) -> Call:
    """Return the call for a request, with the client's id if it is usable, else a new one."""
    usable = request_id is not None and _REQUEST_ID.fullmatch(request_id)
    traced = traceparent is not None and _TRACEPARENT.fullmatch(traceparent)
    return Call(
        request_id=request_id if request_id is not None and usable else uuid.uuid4().hex,
        traceparent=traceparent if traced else None,
    )


@dataclass(frozen=True, slots=True)
class Model:
    """What answers: a bundle, or with an adapter of it."""

    bundle: str
    adapter: str

    @property
    def name(self) -> str:
        """The name that answers carry."""
        return f"{self.bundle}:{self.adapter}" if self.adapter else self.bundle


class Desk:
    """Where a request reports, whichever door it came through."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        fetcher: Fetcher,
        mesh: Mesh,
        state: MeshState,
        metrics: Metrics,
        keys: Keys,
        quota: Quota,
        memory: Memory,
    ) -> None:
        self.settings, self.state, self.metrics, self.memory = settings, state, metrics, memory
        self._pipeline, self._fetcher, self._mesh = pipeline, fetcher, mesh
        self._keys, self._quota = keys, quota
        self._running = 0

    def admit(self, call: Call, authorization: str | None, timeout: float | None) -> None:
        """Check the key and set tenant and deadline; raises AuthenticationFailed."""
        call.tenant = self._keys.tenant(authorization)
        allowed = self.settings.default_timeout if timeout is None else min(timeout, self.settings.max_timeout)
        call.deadline = Deadline.after(allowed)

    @asynccontextmanager
    async def place(self, call: Call, size: int = 0) -> AsyncIterator[None]:
        """Hold one of the process's places, within the tenant's limits, and the request's bytes.

        `size` of them are here already. Raises RateLimited when that cannot be.
        """
        if self._running >= self.settings.max_concurrent_requests:
            self.metrics.rejected(call.tenant, "capacity")
            raise RateLimited("the gateway is full; try again shortly")
        self._running += 1
        self.metrics.running.set(self._running)
        try:
            with self._quota.seat(call.tenant):
                await self._quota.spend(call)
                self.memory.take(call, size)
                yield
        finally:
            self.memory.release(call)
            self._running -= 1
            self.metrics.running.set(self._running)

    async def model(self, name: str, param: str) -> Model:
        """Return what answers to `name`: a bundle's own, its alias, or nothing for any, each also as `base:adapter`.

        Raises NotFound when nothing does.
        """
        decoder = await self.state.decoder()
        base, colon, adapter = name.partition(":")
        if name and (base not in (decoder.bundle, ALIAS) or (colon and adapter not in decoder.adapters)):
            known = ", ".join([decoder.bundle, ALIAS, *(f"{decoder.bundle}:{each}" for each in decoder.adapters)])
            raise NotFound(f"the model {name[:100]!r} does not exist; there are {known}", param=param)
        return Model(decoder.bundle, adapter)

    async def models(self) -> list[ModelCard]:
        """Return a card for each name, the bundle's own first; raises UpstreamUnavailable."""
        decoder = await self.state.decoder()
        return [
            ModelCard(
                id=name,
                bundle=decoder.bundle,
                modalities=self.state.modalities,
                context_length=decoder.context_length,
            )
            for base in dict.fromkeys((decoder.bundle, ALIAS))
            for name in (base, *(f"{base}:{adapter}" for adapter in decoder.adapters))
        ]

    async def chat(self, conversation: Conversation, call: Call) -> AsyncGenerator[Step, None]:
        """Stream an answer, measured; raises MeshError."""
        latest: dict[int, float] = {}
        async with aclosing(self._pipeline.answer(conversation, call)) as steps:
            async for step in steps:
                self._measure(step, call, latest)
                yield step

    async def embed(self, inputs: Inputs, model: Model, call: Call) -> DecoderServiceEmbedResponse:
        """Return one vector of each part; raises MeshError."""
        if model.adapter:
            raise InvalidRequest(f"model: adapters change no vectors; ask for {model.bundle}", param="model")
        width = (await self.state.decoder()).embedding_width
        if inputs.dimensions not in (None, width):
            raise InvalidRequest(f"dimensions: the vectors of {model.bundle} have {width}", param="dimensions")
        return await self._pipeline.pool(inputs, call)

    async def transcribe(self, audio: MediaPart, call: Call) -> SpeechServiceTranscribeResponse:
        """Return what was said in a recording; raises MeshError naming its field where it is to blame."""
        await self.state.require(audio.modality)
        (media,) = await self._fetcher.media([audio], call)
        try:
            return await self._mesh.transcribe(media, call)
        except (InvalidRequest, RequestTooLarge, UnsupportedMedia) as error:
            raise error.at(audio.param) from None

    def failed(self, error: BaseException) -> MeshError:
        """Count an error and return what the client may see of it."""
        known = as_mesh_error(error)
        self.metrics.failed(known)
        return known

    def log(self, call: Call, route: str, status: object, level: int = logging.INFO) -> None:
        """Write the one line of a request: ids, the tenant's name, sizes and hashes only."""
        took = (time.monotonic() - call.started) * 1000
        media = ",".join(call.media) or "-"
        line = "%s %s %s %.1fms tenant=%s in=%d media=%s"
        logger.log(level, line, call.request_id, route, status, took, call.tenant.name, call.received, media)

    def _measure(self, step: Step, call: Call, latest: dict[int, float]) -> None:
        now = time.monotonic()
        if not latest:
            self.metrics.first_token.observe(now - call.started)
        elif step.index in latest:
            self.metrics.next_token.observe(now - latest[step.index])
        latest[step.index] = now
        if step.finish_reason:
            self.metrics.finished(step.finish_reason)
        if step.summary is not None:
            self.metrics.whole.observe(now - call.started)
            self.metrics.gated(step.summary.gates)
