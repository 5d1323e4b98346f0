"""The gRPC server: protobuf in, the same admission and assistant, protobuf out; errors are google.rpc.Status."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.message import Message as ProtoMessage

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.admission.admission import AdmittedSlot
from autoglm.gateway.assistant import ResolvedModel
from autoglm.gateway.backend import Backend
from autoglm.gateway.conversation import (
    Conversation,
    ConversationMessage,
    FieldPaths,
    MediaPart,
    TextPart,
    check_choices,
    check_messages,
    check_sampling,
)
from autoglm.gateway.grpc_calls import Rpc, admitted, authenticated, receive
from autoglm.gateway.limits import MAX_MESSAGES, MAX_PARTS, MAX_TOOLS, check_count
from autoglm.gateway.media.verify import at_url
from autoglm.gateway.pipeline import Step, collect
from autoglm.gateway.pipeline import Summary as AnswerSummary
from autoglm.gateway.schema_checks import check_format
from autoglm.gateway.tasks import off_loop
from autoglm.gateway.tool_checks import with_usable_tools
from autoglm.v1.chat_pb2 import (
    ChatMessage,
    ChatRequest,
    Choice,
    CompleteRequest,
    CompleteResponse,
    ContentPart,
    Media,
    StreamCompleteRequest,
    StreamCompleteResponse,
    Summary,
)
from autoglm.v1.chat_pb2_grpc import ChatServiceServicer
from autoglm.v1.generation_pb2 import ROLE_TOOL, ROLE_UNSPECIFIED, Role
from autoglm.v1.modality_pb2 import MODALITY_AUDIO, MODALITY_IMAGE, Modality
from autoglm.v1.model_pb2 import ListModelsRequest, ListModelsResponse
from autoglm.v1.model_pb2_grpc import ModelServiceServicer
from autoglm.v1.transcription_pb2 import TranscribeRequest, TranscribeResponse
from autoglm.v1.transcription_pb2_grpc import TranscriptionServiceServicer

P = TypeVar("P", bound=ProtoMessage)

SHA256_BYTES = 32
_ROLES = frozenset(Role.values())
PATHS = FieldPaths(messages="chat.messages", root="chat.", sampling="chat.sampling.")


class ChatServicer(ChatServiceServicer):
    """ChatService."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def Complete(self, request: CompleteRequest, context: Rpc) -> CompleteResponse:
        """Answer in one message."""
        async with admitted(self._backend, context, "ChatService/Complete", request) as slot:
            conversation, model = await self._read(request, slot)
            async with aclosing(self._backend.assistant.chat(slot, model, conversation, stream=False)) as steps:
                choices, summary = await collect(steps, conversation.n)
            return CompleteResponse(
                id=slot.context.request_id,
                model=model.name,
                choices=[
                    Choice(
                        index=index,
                        text=choice.text,
                        reasoning=choice.reasoning,
                        finish_reason=choice.finish_reason,
                        logprobs=choice.logprobs,
                        tool_calls=choice.calls,
                    )
                    for index, choice in enumerate(choices)
                ],
                summary=_summary(summary),
            )
        raise AssertionError  # `admitted` never swallows an error

    async def StreamComplete(
        self, request: StreamCompleteRequest, context: Rpc
    ) -> AsyncGenerator[StreamCompleteResponse, None]:
        """Answer step by step."""
        async with admitted(self._backend, context, "ChatService/StreamComplete", request) as slot:
            conversation, model = await self._read(request, slot)
            async with aclosing(self._backend.assistant.chat(slot, model, conversation, stream=True)) as steps:
                async for step in steps:
                    yield _step(step, slot.context.request_id, model.name)

    async def _read(
        self, request: CompleteRequest | StreamCompleteRequest, slot: AdmittedSlot
    ) -> tuple[Conversation, ResolvedModel]:
        """Return what `request` asks for, and clear it so that its media is not held twice."""
        most = self._backend.settings.max_media_parts
        async with asyncio.timeout(slot.context.deadline.remaining()):
            conversation = await off_loop(slot.context.received, lambda: to_conversation(request.chat, most))
        model = await self._backend.assistant.resolve(request.chat.model, "chat.model")
        request.Clear()
        return conversation, model


class ModelServicer(ModelServiceServicer):
    """ModelService."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def ListModels(self, request: ListModelsRequest, context: Rpc) -> ListModelsResponse:
        """List the names that requests may use."""
        async with authenticated(self._backend, context, "ModelService/ListModels") as asked:
            await receive(self._backend, context, request, asked)
            return ListModelsResponse(models=await self._backend.assistant.models())
        raise AssertionError


class TranscriptionServicer(TranscriptionServiceServicer):
    """TranscriptionService."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def Transcribe(self, request: TranscribeRequest, context: Rpc) -> TranscribeResponse:
        """Return what is said in a recording."""
        async with admitted(self._backend, context, "TranscriptionService/Transcribe", request) as slot:
            audio = await off_loop(slot.context.received, lambda: _media(request.audio, MODALITY_AUDIO, "audio"))
            said = await self._backend.assistant.transcribe(slot, audio)
            return TranscribeResponse(text=said.text, duration=said.duration, segments=said.segments)
        raise AssertionError


def to_conversation(chat: ChatRequest, max_media: int) -> Conversation:
    """Return the conversation of `chat`; raises InvalidRequest naming the first invalid field."""
    check_count(len(chat.messages), MAX_MESSAGES, "messages", PATHS.messages)
    count = sum(len(message.parts) + len(message.tool_calls) for message in chat.messages)
    check_count(count, MAX_PARTS, "parts and calls", PATHS.messages)
    check_count(len(chat.tools), MAX_TOOLS, "tools", "chat.tools")
    messages = [_message(message, f"chat.messages[{i}]") for i, message in enumerate(chat.messages)]
    check_messages(messages, PATHS.messages, max_media)
    check_sampling(chat.sampling, "chat.sampling.")
    check_choices(chat.n or 1, "chat.n")
    conversation = Conversation(
        messages=messages,
        sampling=_own(chat.sampling),
        paths=PATHS,
        enable_thinking=chat.enable_thinking if chat.HasField("enable_thinking") else None,
        return_reasoning=chat.return_reasoning,
        n=chat.n or 1,
        tools=[_own(tool) for tool in chat.tools],
        tool_choice=_own(chat.tool_choice) if chat.HasField("tool_choice") else None,
        parallel_tool_calls=chat.parallel_tool_calls or not chat.HasField("parallel_tool_calls"),
    )
    check_format(conversation)
    return with_usable_tools(conversation)


def _own(message: P) -> P:
    """Return a copy, which stays when the request is cleared."""
    return type(message).FromString(message.SerializeToString())


def _message(message: ChatMessage, param: str) -> ConversationMessage:
    if message.role == ROLE_UNSPECIFIED or message.role not in _ROLES:
        raise InvalidRequest(f"{param}.role must be a known role", param=f"{param}.role")
    parts = [content_part(part, f"{param}.parts[{i}]") for i, part in enumerate(message.parts)]
    calls = [_own(call) for call in message.tool_calls]
    field = "tool_call_id" if message.role == ROLE_TOOL else "tool_calls"
    return ConversationMessage(message.role, parts, f"{param}.{field}", calls, message.tool_call_id)


def content_part(part: ContentPart, param: str) -> TextPart | MediaPart:
    """Return `part`, which is at `param`; raises InvalidRequest for one that is empty or names no media."""
    match part.WhichOneof("part"):
        case "text":
            return TextPart(part.text)
        case "image":
            return _media(part.image, MODALITY_IMAGE, f"{param}.image")
        case "audio":
            return _media(part.audio, MODALITY_AUDIO, f"{param}.audio")
    raise InvalidRequest(f"{param} must be text, image or audio", param=param)


def _media(media: Media, modality: Modality.ValueType, param: str) -> MediaPart:
    match media.WhichOneof("source"):
        case "data":
            return MediaPart(modality, media.data, f"{param}.data")
        case "url":
            return at_url(media.url, modality, f"{param}.url")
        case "sha256":
            return _known_media(modality, media.sha256, f"{param}.sha256")
    raise InvalidRequest(f"{param} must have data, url or sha256", param=param)


def _known_media(modality: Modality.ValueType, sha256: bytes, param: str) -> MediaPart:
    if len(sha256) != SHA256_BYTES:
        raise InvalidRequest(f"{param} must be {SHA256_BYTES} bytes, not {len(sha256)}", param=param)
    return MediaPart(modality, b"", param, sha256=sha256)


def _step(step: Step, request_id: str, model: str) -> StreamCompleteResponse:
    delta = Choice(
        index=step.index,
        text=step.text,
        reasoning=step.reasoning,
        finish_reason=step.finish_reason,
        logprobs=step.logprobs,
        tool_calls=step.calls,
    )
    summary = None if step.summary is None else _summary(step.summary)
    return StreamCompleteResponse(id=request_id, model=model, delta=delta, summary=summary)


def _summary(summary: AnswerSummary) -> Summary:
    return Summary(usage=summary.usage, stages=summary.stages, gates=summary.gates)
