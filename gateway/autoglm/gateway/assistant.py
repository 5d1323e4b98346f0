"""What the gateway can do for an admitted request: chat, embed, transcribe; and which models it offers to anyone."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from autoglm.common.bundle import ALIASES
from autoglm.common.errors import InvalidRequest, NotFound, RequestTooLarge, UnsupportedMedia
from autoglm.gateway.admission.admission import AdmittedSlot
from autoglm.gateway.answer_metrics import AnswerMetrics
from autoglm.gateway.conversation import Conversation, EmbeddingInputs, MediaPart, check_input, check_text
from autoglm.gateway.drain import Drain
from autoglm.gateway.health import MeshState
from autoglm.gateway.media.fetch import Fetcher
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.pipeline import Pipeline, Step
from autoglm.gateway.upstream import Mesh
from autoglm.v1.decoder_pb2 import DecoderServiceDescribeResponse, DecoderServiceEmbedResponse
from autoglm.v1.model_pb2 import ModelCard
from autoglm.v1.speech_pb2 import SpeechServiceTranscribeResponse


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """The model that answers: the first of its names, and the adapter it uses, if any."""

    base: str
    adapter: str

    @property
    def name(self) -> str:
        """The name that answers carry."""
        return f"{self.base}:{self.adapter}" if self.adapter else self.base


class Assistant:
    """Answers requests with the services of the mesh. Whatever makes a service work takes an admitted slot."""

    def __init__(
        self,
        pipeline: Pipeline,
        fetcher: Fetcher,
        mesh: Mesh,
        state: MeshState,
        metrics: GatewayMetrics,
        drain: Drain,
        served_names: Sequence[str] = (),
    ) -> None:
        """Answer to `served_names`; without any, to the bundle's name and its aliases."""
        self._pipeline, self._fetcher, self._mesh = pipeline, fetcher, mesh
        self._state, self._metrics, self._drain, self._served_names = state, metrics, drain, served_names

    async def resolve(self, name: str, param: str) -> ResolvedModel:
        """Return the model that a client calls `name`: one of its names, one of them as `base:adapter`, or an empty
        name for the model without an adapter.

        Raises NotFound, blaming `param`, for any other name, and UpstreamUnavailable.
        """
        decoder = await self._state.decoder()
        names = self._names(decoder)
        if not name or name in names:
            return ResolvedModel(names[0], "")
        base, _, adapter = name.rpartition(":")  # a name that was set may contain a colon itself
        if base not in names or adapter not in decoder.adapters:
            known = ", ".join([*names, *(f"{names[0]}:{each}" for each in decoder.adapters)])
            raise NotFound(
                f"the model {name[:100]!r} does not exist; available: {known}", param=param, code="model_not_found"
            )
        return ResolvedModel(names[0], adapter)

    async def models(self) -> list[ModelCard]:
        """Return a card for each name, the one that answers carry first; raises UpstreamUnavailable."""
        decoder = await self._state.decoder()
        return [
            ModelCard(
                id=name,
                bundle=decoder.bundle,
                modalities=self._state.modalities,
                context_length=decoder.context_length,
            )
            for base in self._names(decoder)
            for name in (base, *(f"{base}:{adapter}" for adapter in decoder.adapters))
        ]

    async def chat(
        self, slot: AdmittedSlot, model: ResolvedModel, conversation: Conversation, *, stream: bool
    ) -> AsyncGenerator[Step, None]:
        """Yield the steps of an answer and record its latencies, under whether the client gets them as a stream too;
        raises MeshError."""
        context = slot.context
        context.answered_by("chat", model.name)
        measured = AnswerMetrics(self._metrics, context, conversation.media, stream)
        decoder = await self._state.decoder()
        if decoder.max_text_bytes:
            check_text(conversation, decoder.context_length, decoder.max_text_bytes)
        async with (
            aclosing(self._pipeline.answer(conversation, model.adapter, context)) as answer,
            aclosing(self._drain.until_end(answer)) as steps,
        ):
            async for step in steps:
                _measure(step, measured)
                yield step

    async def embed(
        self, slot: AdmittedSlot, model: ResolvedModel, inputs: EmbeddingInputs
    ) -> DecoderServiceEmbedResponse:
        """Return one vector for each part; raises MeshError."""
        context = slot.context
        context.answered_by("embeddings", model.name)
        if model.adapter:
            raise InvalidRequest(f"model: adapters do not change embeddings; use {model.base}", param="model")
        decoder = await self._state.decoder()
        width = decoder.embedding_width
        if inputs.dimensions not in (None, width):
            raise InvalidRequest(
                f"dimensions: vectors of {model.base} have {width}", param="dimensions", code="unsupported_value"
            )
        if decoder.max_text_bytes:
            check_input(inputs, decoder.context_length, decoder.max_text_bytes)
        return await self._drain.run(self._pipeline.pool(inputs, context))

    async def transcribe(self, slot: AdmittedSlot, audio: MediaPart) -> SpeechServiceTranscribeResponse:
        """Return what is said in a recording; raises MeshError, with the recording's field where that is at fault."""
        context = slot.context
        context.answered_by("transcription", "")
        await self._state.require(audio.modality)
        (media,) = await self._drain.run(self._fetcher.media([audio], context))
        try:
            with context.span.child("transcribe", {"autoglm.media.bytes": len(media.data)}, "client") as span:
                async with self._state.while_starting(audio.modality, context):
                    return await self._drain.run(self._mesh.transcribe(media, context, span))
        except (InvalidRequest, RequestTooLarge, UnsupportedMedia) as error:
            raise error.at(audio.param) from None

    def _names(self, decoder: DecoderServiceDescribeResponse) -> Sequence[str]:
        return self._served_names or list(dict.fromkeys((decoder.bundle, *ALIASES)))


def _measure(step: Step, measured: AnswerMetrics) -> None:
    measured.step(step.index)
    if step.finish_reason:
        measured.finished(step.finish_reason)
    if (summary := step.summary) is not None:
        measured.ended(summary.usage, summary.stages, summary.gates)
