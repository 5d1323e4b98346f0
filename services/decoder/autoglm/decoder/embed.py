"""DecoderService.Embed: parts become vectors, one request at a time, in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from autoglm.common.context_length import context_exceeded, is_longer
from autoglm.common.deadlines import Deadline
from autoglm.common.errors import InvalidRequest
from autoglm.common.priority import give_way
from autoglm.common.torch_tensors import from_torch
from autoglm.decoder.model import DecoderModel
from autoglm.v1.decoder_pb2 import DecoderPart, DecoderServiceEmbedRequest, DecoderServiceEmbedResponse

MAX_TOKENS = 300_000  # of all parts together, as OpenAI's


class Embedder:
    """Pools parts with a model's fusion and embeddings."""

    def __init__(self, model: DecoderModel) -> None:
        self._model = model
        self._thread = ThreadPoolExecutor(1, "embed", give_way)

    async def embed(self, request: DecoderServiceEmbedRequest) -> DecoderServiceEmbedResponse:
        """Return the vectors of `request`; raises InvalidRequest, and TimeoutError when its deadline has passed.

        When its caller has given up, the work stops after the current part.
        """
        deadline = Deadline.of(request)
        left = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await loop.run_in_executor(self._thread, self._vectors, request, left)
        finally:
            left.set()

    def call(self, function: Callable[[], None]) -> None:
        """Have the thread call `function` after the current request."""
        self._thread.submit(function)

    def _vectors(self, request: DecoderServiceEmbedRequest, left: threading.Event) -> DecoderServiceEmbedResponse:
        if not request.input:
            raise InvalidRequest("the input is empty", param="input")
        vectors, tokens = list[Tensor](), 0
        for number, part in enumerate(request.input):
            vector, count = self._pool(part, f"input[{number}]")
            vectors.append(vector)
            tokens += count
            if tokens > MAX_TOKENS:
                raise InvalidRequest(f"the input has more than {MAX_TOKENS} tokens; send it in parts", param="input")
            if left.is_set():
                break
        return DecoderServiceEmbedResponse(vectors=from_torch(torch.stack(vectors)), prompt_tokens=tokens)

    def _pool(self, part: DecoderPart, param: str) -> tuple[Tensor, int]:
        model = self._model
        if part.WhichOneof("part") == "media":
            media = model.media(part.media, param)
            return model.fusion.pool_media(media), len(media.tokens)
        return self._text(part.text, param)

    def _text(self, text: str, param: str) -> tuple[Tensor, int]:
        model, most = self._model, self._model.context
        # A text that is too long for certain is not tokenized.
        too_long = is_longer([text], model.max_text_bytes) or model.composer.exceeds(text, most)
        ids = None if too_long else model.composer.encode(text)
        if ids is None or len(ids) > most:
            has = "more" if ids is None else len(ids)
            raise context_exceeded(most, f"the text has {has}; shorten it", param)
        if not ids:
            raise InvalidRequest("a text must not be empty", param=param)
        return model.fusion.pool_text(model.embed, ids), len(ids)
