"""autoglm.v1.DecoderService: reads requests, submits them to the engine and streams its answers."""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from contextvars import copy_context
from functools import partial
from importlib.metadata import version
from queue import SimpleQueue

import torch

from autoglm.common.bundle import Bundle, chosen_bundle
from autoglm.common.deadlines import Deadline
from autoglm.common.modalities import BY_KIND
from autoglm.common.priority import give_way
from autoglm.common.server import Context, fail
from autoglm.common.tracing import current_span
from autoglm.common.watchdog import Ask
from autoglm.decoder.embed import Embedder
from autoglm.decoder.engine.grammar import CompiledGrammar
from autoglm.decoder.engine.request import Request, RequestOutput, SamplingConfig
from autoglm.decoder.format_spec import has_format
from autoglm.decoder.model import DecoderModel
from autoglm.decoder.progress import ProgressCheck
from autoglm.decoder.request_reader import read
from autoglm.decoder.settings import DecoderSettings
from autoglm.decoder.stream import ResponseBuilder, TokenQueue
from autoglm.fusion.prompt import Media, PromptMessage
from autoglm.v1 import decoder_pb2, modality_pb2

logger = logging.getLogger("autoglm.decoder")

READERS = 2  # of requests without a format; more would only share one lock
FORMAT_THREADS = 64  # formats that are known need not wait for new ones
OFF_LOOP_BYTES = 4 * 1024  # text of this size is tokenized in a few milliseconds
SWITCH_SECONDS = 0.0001  # that the engine waits for a thread of Python code; Python's 5 ms are a token


class DecoderServicer:
    """Generates answers with one engine, and makes vectors in a thread of its own."""

    def __init__(self, model: DecoderModel) -> None:
        self.model, self.engine, self._embedder = model, model.engine, Embedder(model)
        self._formats = ThreadPoolExecutor(FORMAT_THREADS, "formats", give_way)
        self._readers = ThreadPoolExecutor(READERS, "readers", give_way)
        self._progress = ProgressCheck()
        self._described = _description(model)

    @property
    def threads(self) -> Mapping[str, Ask]:
        """What has to go on for requests to be answered, for the watchdog."""
        return {"engine": self.engine.call, "embed": self._embedder.call}

    @classmethod
    def load(cls, settings: DecoderSettings) -> "DecoderServicer":
        """Open the bundle's decoder and fusion; raises BundleError when a part is incomplete."""
        sys.setswitchinterval(SWITCH_SECONDS)
        model = DecoderModel.load(Bundle.open(chosen_bundle(settings.bundle)), settings)
        servicer = cls(model)
        servicer.warm_up()
        return servicer

    def warm_up(self) -> None:
        """Answer two prompts at once with media of each kind, so that the first request is as fast as later ones."""
        media = [Media(kind, torch.zeros(49, width)) for kind, width in self.model.fusion.media_widths.items()]
        prompt = self.model.composer.compose([PromptMessage("user", (*media, "你好" * 20))])
        outputs: SimpleQueue[RequestOutput] = SimpleQueue()
        for _ in range(2):
            sampling = SamplingConfig(temperature=0, max_tokens=4)
            self.engine.submit(Request(prompt, sampling, self.model.context), outputs.put)
        finished = 0
        while finished < 2:
            finished += outputs.get().finish is not None

    async def generate(
        self, request: decoder_pb2.DecoderServiceGenerateRequest, context: Context
    ) -> AsyncIterator[decoder_pb2.DecoderServiceGenerateResponse]:
        """DecoderService.Generate."""
        try:
            deadline = Deadline.of(request)
            async with aclosing(self._generate(request, deadline)) as messages:
                while True:
                    async with asyncio.timeout(deadline.remaining()):
                        message = await anext(messages, None)
                    if message is None:
                        return
                    yield message
        except Exception as error:
            fail(context, error)

    async def embed(
        self, request: decoder_pb2.DecoderServiceEmbedRequest, context: Context
    ) -> decoder_pb2.DecoderServiceEmbedResponse:
        """DecoderService.Embed."""
        try:
            return await self._embedder.embed(request)
        except Exception as error:
            fail(context, error)
            return decoder_pb2.DecoderServiceEmbedResponse()

    def check_health(self) -> None:
        """Raise RuntimeError when the engine has stopped, or has work and makes no progress; Serve asks each second."""
        if not self.engine.alive():
            raise RuntimeError("the engine's thread has ended")
        if self._progress.is_stuck(stats := self.engine.stats()):
            raise RuntimeError(f"the engine hangs: {stats.active} requests wait, and nothing is computed")

    def describe(self) -> decoder_pb2.DecoderServiceDescribeResponse:
        """DecoderService.Describe."""
        stats, described = self.engine.stats(), decoder_pb2.DecoderServiceDescribeResponse()
        described.CopyFrom(self._described)
        described.num_requests_running, described.num_requests_waiting = stats.running, stats.waiting
        described.kv_cache_usage_perc = stats.cache_usage
        return described

    async def _generate(
        self, message: decoder_pb2.DecoderServiceGenerateRequest, deadline: Deadline
    ) -> AsyncGenerator[decoder_pb2.DecoderServiceGenerateResponse, None]:
        """Read, submit, stream."""
        span, begun = current_span(), time.monotonic()
        work = partial(copy_context().run, self._read, message, deadline)
        loop = asyncio.get_running_loop()
        if has_format(message):  # in threads, so that other answers go on meanwhile
            request, responses, grammar = await loop.run_in_executor(self._formats, work)
        elif message.ByteSize() > OFF_LOOP_BYTES:
            request, responses, grammar = await loop.run_in_executor(self._readers, work)
        else:
            request, responses, grammar = work()
        if request.adapter is not None:  # from disk, if need be, before it is queued: the engine does not wait for it
            await asyncio.to_thread(self.model.adapters.get, request.adapter.name)
        span.record("read", begun, time.monotonic())
        queue = TokenQueue(partial(self.engine.acknowledge, request.id))
        self.engine.submit(request, queue.put, deadline.remaining())
        try:
            async for response in responses.messages(queue):
                yield response
        finally:
            self.engine.abort(request.id)
            responses.trace(span)
            del grammar  # until here it has been held for the engine

    def _read(
        self, message: decoder_pb2.DecoderServiceGenerateRequest, deadline: Deadline
    ) -> tuple[Request, ResponseBuilder, CompiledGrammar | None]:
        """Read a request, and compile its format if it has one: who holds it keeps it compiled."""
        request = read(message, self.model, deadline)
        grammar = None if request.grammar is None else self.model.grammars.compiled(request.grammar)
        return request, ResponseBuilder.of(message, request, self.model.composer), grammar


def _description(model: DecoderModel) -> decoder_pb2.DecoderServiceDescribeResponse:
    """Return what does not change while the model is loaded; gateways ask for it every two seconds."""
    return decoder_pb2.DecoderServiceDescribeResponse(
        bundle=model.bundle.name,
        modalities=[modality_pb2.MODALITY_TEXT, *(BY_KIND[kind].number for kind in model.fusion.media_widths)],
        context_length=model.context,
        device=str(model.device),
        adapters=model.adapters.names,
        int8=model.int8,
        embedding_width=model.fusion.width,
        max_text_bytes=model.max_text_bytes,
        engine=model.engine.name,
        revision=model.bundle.revision("decoder"),
        fusion_revision=model.bundle.revision("fusion"),
        version=version("autoglm-mesh"),
    )
