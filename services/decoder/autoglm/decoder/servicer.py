"""autoglm.v1.DecoderService: unpack, compose, generate, pack."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from queue import SimpleQueue

import torch

from autoglm.common.bundle import Bundle, chosen_bundle
from autoglm.common.deadlines import Deadline
from autoglm.common.errors import InvalidRequest, NotFound
from autoglm.common.modalities import BY_KIND
from autoglm.common.server import Context, fail
from autoglm.decoder.embed import Embedder
from autoglm.decoder.engine.grammar import Grammar
from autoglm.decoder.engine.lora import Adapter
from autoglm.decoder.engine.sequence import Chosen, Finished, Sampling, Sequence
from autoglm.decoder.model import DecoderModel
from autoglm.decoder.settings import DecoderSettings
from autoglm.decoder.stream import Answer, Inbox
from autoglm.decoder.tools import Function, ToolCalls, description, grammar, written
from autoglm.fusion.prompt import Media, Prompt, PromptMessage, Role
from autoglm.v1 import decoder_pb2, generation_pb2, modality_pb2

logger = logging.getLogger("autoglm.decoder")

ROLES: dict[generation_pb2.Role.ValueType, Role] = {
    generation_pb2.ROLE_SYSTEM: "system",
    generation_pb2.ROLE_USER: "user",
    generation_pb2.ROLE_ASSISTANT: "assistant",
    generation_pb2.ROLE_TOOL: "tool",
}


class DecoderServicer:
    """Generates answers with one engine, and makes vectors beside it."""

    def __init__(self, model: DecoderModel) -> None:
        self._model, self.engine, self._embedder = model, model.engine, Embedder(model)

    @classmethod
    def load(cls, settings: DecoderSettings) -> "DecoderServicer":
        """Open the bundle's decoder and fusion; raises BundleError when a part is not whole."""
        model = DecoderModel.load(Bundle.open(chosen_bundle(settings.bundle)), settings)
        servicer = cls(model)
        servicer.warm_up()
        return servicer

    def warm_up(self) -> None:
        """Answer two prompts at once with media of each kind, so that the first request finds all warm."""
        media = [Media(kind, torch.zeros(49, width)) for kind, width in self._model.fusion.media_widths.items()]
        prompt = self._model.composer.compose([PromptMessage("user", (*media, "你好" * 20))])
        events: SimpleQueue[Chosen | Finished] = SimpleQueue()
        for _ in range(2):
            sampling = Sampling(temperature=0, max_tokens=4)
            self.engine.submit(Sequence.start(prompt, sampling, self._room(prompt), events.put))
        finished = 0
        while finished < 2:
            finished += isinstance(events.get(), Finished)

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

    def describe(self) -> decoder_pb2.DecoderServiceDescribeResponse:
        """DecoderService.Describe."""
        stats, fusion = self.engine.stats(), self._model.fusion
        return decoder_pb2.DecoderServiceDescribeResponse(
            bundle=self._model.bundle.name,
            modalities=[modality_pb2.MODALITY_TEXT, *(BY_KIND[kind].number for kind in fusion.media_widths)],
            context_length=self._model.context,
            device=str(self._model.device),
            num_requests_running=stats.running,
            num_requests_waiting=stats.waiting,
            kv_cache_usage_perc=stats.cache_usage,
            adapters=self._model.adapters.names,
            int8=self._model.int8,
            embedding_width=fusion.width,
        )

    async def _generate(
        self, request: decoder_pb2.DecoderServiceGenerateRequest, deadline: Deadline
    ) -> AsyncGenerator[decoder_pb2.DecoderServiceGenerateResponse, None]:
        prompt = self._prompt(request)
        sampling = self._sampling(request.sampling)
        inbox = Inbox(self.engine.wake)
        salt = request.cache_salt.encode()
        thinking = self._model.thinking(prompt, _thinking_budget(request.sampling))
        functions, single = [Function.of(tool) for tool in request.tools], _single(request)
        wanted = self._grammar(request, functions, single)
        adapter = await self._adapter(request.adapter)
        room = self._room(prompt)
        sequence = Sequence.start(prompt, sampling, room, inbox.put, salt, inbox.full, thinking, wanted, adapter)
        calls = ToolCalls(functions, single) if functions else None
        answer = Answer(self._model.composer.tokenizer, prompt, sampling.stop, request.return_reasoning, calls)
        self.engine.submit(sequence, deadline.remaining())
        try:
            async for message, ended in answer.messages(inbox):
                if ended:
                    message.finish.CopyFrom(answer.finish(sequence, ended))
                yield message
        finally:
            self.engine.abort(sequence)

    async def _adapter(self, name: str) -> Adapter | None:
        """Return the adapter of that name; reading one from disk does not hold the others up."""
        if not name:
            return None
        try:
            return await asyncio.to_thread(self._model.adapters.get, name)
        except KeyError:
            raise NotFound(f"bundle {self._model.bundle.name} has no adapter {name[:100]!r}", param="model") from None

    def _prompt(self, request: decoder_pb2.DecoderServiceGenerateRequest) -> Prompt:
        if not request.messages:
            raise InvalidRequest("a conversation needs at least one message", param="messages")
        composer = self._model.composer
        uses_tools = request.tools or any(message.tool_calls for message in request.messages)
        if uses_tools and not composer.takes_tools:
            raise InvalidRequest(f"the chat template of {self._model.bundle.name} knows no tools", param="tools")
        messages = [self._message(message) for message in request.messages]
        thinking = request.enable_thinking if request.HasField("enable_thinking") else None
        return composer.compose(messages, thinking, [description(tool) for tool in request.tools])

    def _message(self, message: decoder_pb2.DecoderMessage) -> PromptMessage:
        if message.role not in ROLES:
            raise InvalidRequest(f"unknown role {message.role}", param="messages.role")
        media = partial(self._model.media, param="messages")
        parts = (p.text if p.WhichOneof("part") == "text" else media(p.media) for p in message.parts)
        return PromptMessage(ROLES[message.role], tuple(parts), tuple(written(call) for call in message.tool_calls))

    def _room(self, prompt: Prompt) -> int:
        context, used = self._model.context, len(prompt.token_ids)
        if used >= context:
            raise InvalidRequest(
                f"this model's maximum context length is {context} tokens, but the messages have {used}; shorten them",
                param="messages",
            )
        return context - used

    def _sampling(self, message: generation_pb2.SamplingParams) -> Sampling:
        """Return the parameters with defaults for what was not set."""
        known = self._model.composer.vocabulary
        if odd := [token_id for token_id in message.logit_bias if token_id >= known]:
            raise InvalidRequest(f"logit_bias names token {odd[0]}; there are {known}", param="logit_bias")
        given = {field.name: value for field, value in message.ListFields() if field.name in Sampling.__slots__}
        return Sampling(**given | {"stop": tuple(message.stop), "logit_bias": dict(message.logit_bias)})

    def _grammar(
        self, request: decoder_pb2.DecoderServiceGenerateRequest, functions: list[Function], single: bool
    ) -> Grammar | None:
        """Return what the answer has to look like: calls, where the model has to make some, else what was asked for."""
        choice = request.tool_choice
        if choice.function:
            functions = [function for function in functions if function.name == choice.function]
        if choice.function or choice.mode == generation_pb2.TOOL_CHOICE_MODE_REQUIRED:
            try:
                return self._model.grammars.make("grammar", grammar(functions, single))
            except InvalidRequest as error:
                raise error.at("tools") from None
        kind = request.sampling.WhichOneof("structured_output")
        if kind is None:
            return None
        sampling = request.sampling
        given = list(sampling.choice.texts) if kind == "choice" else str(getattr(sampling, kind))
        return self._model.grammars.make(kind, given)


def _single(request: decoder_pb2.DecoderServiceGenerateRequest) -> bool:
    """Return whether the answer may have one call at most: it is said so, or it has to be that of one function."""
    said = request.HasField("parallel_tool_calls") and not request.parallel_tool_calls
    return said or bool(request.tool_choice.function)


def _thinking_budget(sampling: generation_pb2.SamplingParams) -> int | None:
    return sampling.max_thinking_tokens if sampling.HasField("max_thinking_tokens") else None
