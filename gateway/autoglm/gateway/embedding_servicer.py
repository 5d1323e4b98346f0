"""EmbeddingService on the gRPC server: parts in, a vector for each out."""

import asyncio

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.backend import Backend
from autoglm.gateway.conversation import EmbeddingInputs, MediaPart, TextPart
from autoglm.gateway.grpc_calls import Rpc, admitted
from autoglm.gateway.limits import MAX_EMBEDDING_INPUTS, check_count
from autoglm.gateway.servicer import content_part
from autoglm.gateway.tasks import off_loop
from autoglm.v1.decoder_pb2 import DecoderServiceEmbedResponse
from autoglm.v1.embeddings_pb2 import EmbedRequest, EmbedResponse
from autoglm.v1.embeddings_pb2_grpc import EmbeddingServiceServicer

PIECE = 64  # vectors copied at a time, in about a millisecond


class EmbeddingServicer(EmbeddingServiceServicer):
    """EmbeddingService."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def Embed(self, request: EmbedRequest, context: Rpc) -> EmbedResponse:
        """Return one vector for each part."""
        async with admitted(self._backend, context, "EmbeddingService/Embed", request) as slot:
            most = self._backend.settings.max_media_parts
            inputs = await off_loop(slot.context.received, lambda: to_inputs(request, most))
            model = await self._backend.assistant.resolve(request.model, "model")
            request.Clear()  # so that its media is not held twice
            found = await self._backend.assistant.embed(slot, model, inputs)
            return await _response(found, slot.context.request_id, model.name)
        raise AssertionError


def to_inputs(request: EmbedRequest, max_media: int) -> EmbeddingInputs:
    """Return what `request` asks to embed; raises InvalidRequest naming the first invalid field."""
    if not request.input:
        raise InvalidRequest("input must contain at least one part", param="input")
    check_count(len(request.input), MAX_EMBEDDING_INPUTS, "parts", "input")
    parts = [content_part(part, f"input[{i}]") for i, part in enumerate(request.input)]
    for i, part in enumerate(parts):
        if isinstance(part, TextPart) and not part.text:
            raise InvalidRequest(f"input[{i}].text must not be empty", param=f"input[{i}].text")
    if sum(isinstance(part, MediaPart) for part in parts) > max_media:
        raise InvalidRequest(f"input contains more than {max_media} images and recordings", param="input")
    param = "input[0]" if len(parts) == 1 else "input"
    return EmbeddingInputs(parts, param, request.dimensions if request.HasField("dimensions") else None)


async def _response(found: DecoderServiceEmbedResponse, request_id: str, model: str) -> EmbedResponse:
    count, width = found.vectors.shape
    elements = memoryview(found.vectors.data).cast("f", (count * width,))
    response = EmbedResponse(id=request_id, model=model, prompt_tokens=found.prompt_tokens)
    for i in range(count):
        response.vectors.add().values.extend(elements[i * width : (i + 1) * width])
        if i % PIECE == PIECE - 1:
            await asyncio.sleep(0)  # let other requests run
    return response
