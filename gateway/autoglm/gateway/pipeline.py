"""From a conversation to a stream of steps: fetch media, embed it, generate. Independent of any client protocol.

No stage goes back to an earlier one. Closing or cancelling the stream cancels the calls in progress in the services.
Backpressure: the stream reads from the decoder only as fast as its consumer takes steps.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from autoglm.common.deadlines import seconds_to_duration
from autoglm.common.errors import (
    InvalidRequest,
    ModalityUnavailable,
    RequestTooLarge,
    UnsupportedMedia,
    UpstreamUnavailable,
)
from autoglm.common.modalities import MODALITY_NAMES
from autoglm.common.tensors import TensorError, check
from autoglm.common.tracing import Span
from autoglm.gateway.context import RequestContext
from autoglm.gateway.conversation import SEEDS, Conversation, EmbeddingInputs, FieldPaths, MediaPart, TextPart
from autoglm.gateway.health import MeshState
from autoglm.gateway.media.cache import EmbeddingCache, Key
from autoglm.gateway.media.fetch import Fetcher
from autoglm.gateway.media.revisions import of_one_revision
from autoglm.gateway.media.verify import VerifiedMedia
from autoglm.gateway.metrics import OUTCOMES, GatewayMetrics
from autoglm.gateway.span_attributes import (
    finish_attributes,
    generation_attributes,
    media_attributes,
    operation_attributes,
)
from autoglm.gateway.tasks import merge
from autoglm.gateway.upstream import Mesh
from autoglm.v1.decoder_pb2 import (
    DecoderFinish,
    DecoderMessage,
    DecoderPart,
    DecoderServiceEmbedRequest,
    DecoderServiceEmbedResponse,
    DecoderServiceGenerateRequest,
    DecoderServiceGenerateResponse,
)
from autoglm.v1.embedding_pb2 import Embedding
from autoglm.v1.generation_pb2 import (
    FINISH_REASON_UNSPECIFIED,
    FinishReason,
    Gate,
    LogprobEntry,
    MediaStage,
    Stages,
    ToolCall,
    Usage,
)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a whole answer took."""

    usage: Usage
    stages: Stages
    gates: Sequence[Gate]


@dataclass(frozen=True, slots=True)
class Step:
    """What one step adds to choice `index`; function calls come whole. `summary` comes with the last step of all."""

    index: int
    text: str = ""
    reasoning: str = ""
    calls: Sequence[ToolCall] = ()
    logprobs: Sequence[LogprobEntry] = ()
    finish_reason: FinishReason.ValueType = FINISH_REASON_UNSPECIFIED
    summary: Summary | None = None


@dataclass(slots=True)
class Choice:
    """One whole answer. The first `num_before_text` entries of `logprobs` are of its reasoning."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[LogprobEntry] = field(default_factory=list)
    num_before_text: int = 0
    finish_reason: FinishReason.ValueType = FINISH_REASON_UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Embedded:
    """A conversation with its media embedded, the seconds spent fetching, and a stage for each part."""

    messages: Sequence[DecoderMessage]
    fetch: float
    media: Sequence[MediaStage]


class Pipeline:
    """The stages of one request."""

    def __init__(
        self, mesh: Mesh, cache: EmbeddingCache, state: MeshState, fetcher: Fetcher, metrics: GatewayMetrics
    ) -> None:
        self._mesh, self._cache, self._state, self._fetcher, self._metrics = mesh, cache, state, fetcher, metrics

    async def answer(
        self, conversation: Conversation, adapter: str, context: RequestContext
    ) -> AsyncGenerator[Step, None]:
        """Stream the answer's steps, generated with the bundle's `adapter` if one is named; raises MeshError."""
        embedded = await self.embed(conversation, context)
        requests = [_generate_request(i, conversation, adapter, embedded, context) for i in range(conversation.n)]
        streams = [self._choice(i, request, conversation.paths, context) for i, request in enumerate(requests)]
        finishes: list[DecoderFinish] = []
        async with aclosing(streams[0] if len(streams) == 1 else merge(streams)) as responses:
            async for index, response in responses:
                summary = None
                if response.HasField("finish"):
                    finishes.append(response.finish)
                    summary = _summary(finishes, embedded, context) if len(finishes) == conversation.n else None
                yield _step(index, response, summary)

    async def embed(self, conversation: Conversation, context: RequestContext) -> Embedded:
        """Fetch, verify and embed the media of `conversation`, all parts at once; raises MeshError."""
        found, fetched, stages = await self._encoded(conversation.media, context)
        messages = [
            DecoderMessage(
                role=message.role,
                parts=[_decoder_part(part, found) for part in message.parts],
                tool_calls=message.calls,
            )
            for message in conversation.messages
        ]
        return Embedded(messages, fetched, stages)

    async def pool(self, inputs: EmbeddingInputs, context: RequestContext) -> DecoderServiceEmbedResponse:
        """Return one vector for each part; raises MeshError."""
        found, _, _ = await self._encoded([part for part in inputs.parts if isinstance(part, MediaPart)], context)
        request = DecoderServiceEmbedRequest(input=[_decoder_part(part, found) for part in inputs.parts])
        try:
            attributes = operation_attributes("embeddings", context)
            with context.span.child(f"embeddings {context.model}", attributes, "client") as span:
                answer = await self._mesh.embed(request, context, span)
                span.set({"gen_ai.usage.input_tokens": answer.prompt_tokens})
            check(answer.vectors)
        except InvalidRequest as error:
            raise error.at(inputs.param if len(inputs.parts) == 1 else error.param or inputs.param) from None
        except TensorError as error:
            raise UpstreamUnavailable(f"the decoder returned damaged vectors: {error}; try again") from None
        except UpstreamUnavailable:
            self._state.suspect()
            raise
        return answer

    async def _encoded(
        self, parts: Sequence[MediaPart], context: RequestContext
    ) -> tuple[Mapping[str, Embedding], float, Sequence[MediaStage]]:
        """Return the embedding of each part by its param, the seconds spent fetching, and a stage for each part."""
        for modality in {part.modality for part in parts}:
            await self._state.encoder(modality, context)
        started = time.monotonic()
        media = await self._fetcher.media(parts, context)
        fetched = time.monotonic() - started
        context.media += [f"{MODALITY_NAMES[m.modality]}:{m.sha256.hex()[:12]}:{len(m.data)}" for m in media]
        results = await of_one_revision(media, partial(self._embedding, context))
        for part in parts:
            part.release()
        found = {item.param: embedding for item, (embedding, _) in zip(media, results, strict=True)}
        return found, fetched, [stage for _, stage in results]

    async def _embedding(
        self, context: RequestContext, media: VerifiedMedia, revision: str | None
    ) -> tuple[Embedding, MediaStage]:
        """Return the embedding of `revision`, by default the encoder's last known: from the cache, or what the encoder
        makes, which has another revision if it was replaced."""
        started = time.monotonic()
        info = await self._state.encoder(media.modality, context)
        revision = revision or info.revision
        key = Key(context.tenant.id, media.modality, revision, info.element_type, media.sha256)
        try:
            with context.span.child("cache lookup", media_attributes(media)) as span:
                encode = partial(self._encode, media, context, span)
                async with self._state.while_starting(media.modality, context):
                    found = self._cache.get(key, encode, context.deadline, has_bytes=bool(media.data))
                    embedding, outcome = await found
                span.set({"autoglm.cache.outcome": OUTCOMES[outcome]})
        except (InvalidRequest, RequestTooLarge, UnsupportedMedia) as error:
            raise error.at(media.param) from None
        except ModalityUnavailable:
            self._state.suspect()
            raise
        if embedding.encoder_revision != revision:
            self._state.suspect()
        took = seconds_to_duration(time.monotonic() - started)
        stage = MediaStage(modality=media.modality, cache=outcome, encode=took)
        self._metrics.encoded(stage, context)
        return embedding, stage

    async def _encode(self, media: VerifiedMedia, context: RequestContext, parent: Span) -> Embedding:
        name = f"encode {MODALITY_NAMES[media.modality]}"
        with parent.child(name, media_attributes(media), "client") as span:
            return await self._mesh.encode(media, context, span)

    async def _choice(
        self, index: int, request: DecoderServiceGenerateRequest, paths: FieldPaths, context: RequestContext
    ) -> AsyncGenerator[tuple[int, DecoderServiceGenerateResponse], None]:
        finished = started = False
        with self._generate_span(index, request, context) as span:
            async with aclosing(self._mesh.generate(request, context, span)) as responses:
                try:
                    async for response in responses:
                        if not started:
                            span.event("first token")
                            started = True
                        if response.HasField("finish"):
                            finished = True
                            span.set(finish_attributes(response.finish) if span.is_recorded else {})
                        yield index, response
                except UpstreamUnavailable:
                    self._state.suspect()
                    raise
                except InvalidRequest as error:
                    raise error.at(paths.blamed(error.param)) from None
            if not finished:
                raise UpstreamUnavailable("the decoder stopped before the answer was complete; try again")

    @staticmethod
    def _generate_span(index: int, request: DecoderServiceGenerateRequest, context: RequestContext) -> Span:
        attributes = generation_attributes(index, request, context) if context.span.is_recorded else {}
        return context.span.child(f"chat {context.model}", attributes, "client")


async def collect(steps: AsyncIterator[Step], n: int) -> tuple[list[Choice], Summary]:
    """Collect a stream of steps into its `n` choices and their summary."""
    choices, summary = [Choice() for _ in range(n)], None
    async for step in steps:
        choice = choices[step.index]
        choice.text += step.text
        choice.reasoning += step.reasoning
        choice.calls += step.calls
        choice.logprobs += step.logprobs
        if step.reasoning and not step.text:
            choice.num_before_text = len(choice.logprobs)
        choice.finish_reason = step.finish_reason or choice.finish_reason
        summary = step.summary or summary
    assert summary is not None  # `answer` ends with one or raises
    return choices, summary


def _step(index: int, response: DecoderServiceGenerateResponse, summary: Summary | None) -> Step:
    reason = response.finish.finish_reason if response.HasField("finish") else FINISH_REASON_UNSPECIFIED
    return Step(index, response.text, response.reasoning, response.tool_calls, response.logprobs, reason, summary)


def _decoder_part(part: TextPart | MediaPart, found: Mapping[str, Embedding]) -> DecoderPart:
    return DecoderPart(media=found[part.param]) if isinstance(part, MediaPart) else DecoderPart(text=part.text)


def _generate_request(
    index: int, conversation: Conversation, adapter: str, embedded: Embedded, context: RequestContext
) -> DecoderServiceGenerateRequest:
    request = DecoderServiceGenerateRequest(
        messages=embedded.messages,
        sampling=conversation.sampling,
        return_reasoning=conversation.return_reasoning,
        request_id=context.request_id,
        cache_salt=context.tenant.id,
        adapter=adapter,
        tools=conversation.tools,
        tool_choice=conversation.tool_choice,
        parallel_tool_calls=conversation.parallel_tool_calls,
    )
    if conversation.enable_thinking is not None:
        request.enable_thinking = conversation.enable_thinking
    if request.sampling.HasField("seed"):
        request.sampling.seed = (request.sampling.seed + index) % SEEDS
    return request


def _summary(finishes: Sequence[DecoderFinish], embedded: Embedded, context: RequestContext) -> Summary:
    """Combine the ends of all choices, which share a prompt and ran concurrently."""
    usage = Usage()
    usage.CopyFrom(finishes[0].usage)
    usage.completion_tokens = sum(finish.usage.completion_tokens for finish in finishes)
    usage.reasoning_tokens = sum(finish.usage.reasoning_tokens for finish in finishes)
    slowest = {
        stage: max((getattr(finish, stage) for finish in finishes), key=lambda taken: taken.ToNanoseconds())
        for stage in ("queue", "prefill", "decode")
    }
    stages = Stages(
        fetch=seconds_to_duration(embedded.fetch),
        media=embedded.media,
        total=seconds_to_duration(time.monotonic() - context.started),
        **slowest,
    )
    return Summary(usage, stages, finishes[0].gates)
