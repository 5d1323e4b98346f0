"""Whole requests of each route and method, from which odd ones are made."""

import base64
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, Media, StreamCompleteRequest
from autoglm.v1.embeddings_pb2 import EmbedRequest
from autoglm.v1.generation_pb2 import (
    ROLE_ASSISTANT,
    ROLE_TOOL,
    ROLE_USER,
    Function,
    FunctionCall,
    SamplingParams,
    Tool,
    ToolCall,
)
from autoglm.v1.model_pb2 import ListModelsRequest
from autoglm.v1.transcription_pb2 import TranscribeRequest

from ..asking import CHAT, MODEL
from .media import a_picture, a_recording

MAX_TOKENS = 3
RESPONSES, EMBEDDINGS, TRANSCRIPTIONS = "/v1/responses", "/v1/embeddings", "/v1/audio/transcriptions"
HI = {"role": "user", "content": "hi"}
PARAMETERS = {"type": "object", "properties": {"a": {"type": "string", "pattern": "a"}}}
FUNCTION = {"name": "f", "description": "d", "parameters": PARAMETERS}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SCHEMA = {"name": "n", "schema": {"type": "object", "properties": {"a": {"minimum": 1}}}, "strict": True}
_AUTOGLM, _CHAT = "/autoglm.v1.", "ChatService/"


def image_part(data: bytes) -> dict[str, Any]:
    """Return a picture as a part of a chat."""
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}


def audio_part(data: bytes) -> dict[str, Any]:
    """Return a recording as a part of a chat."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def chat(*content: Any, **fields: Any) -> dict[str, Any]:
    """Return the body of a chat with one message."""
    return {
        "model": MODEL,
        "max_tokens": MAX_TOKENS,
        "messages": [{"role": "user", "content": list(content)}],
        **fields,
    }


def bodies() -> Sequence[tuple[str, dict[str, Any]]]:
    """Return paths and bodies that are answered with 200."""
    text = {"type": "text", "text": "hi"}
    turns = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": [text, image_part(a_picture()), audio_part(a_recording())]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "ok"},
    ]
    sampling = {
        "logit_bias": {"5": 1}, "stop": ["x"], "seed": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
        "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "n": 2, "logprobs": True,
        "top_logprobs": 2, "max_tokens": MAX_TOKENS, "metadata": {"a": "b"}, "user": "u", "enable_thinking": True,
        "return_reasoning": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    flat = [{"type": "function", **FUNCTION}]
    url = image_part(a_picture())["image_url"]["url"]
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": url}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "ok"},
    ]  # fmt: skip
    short = {"model": MODEL, "max_tokens": MAX_TOKENS, "messages": [HI]}
    return [
        (CHAT, short | {"messages": turns, "tools": [{"type": "function", "function": FUNCTION}]}),
        (CHAT, short | sampling),
        (CHAT, short | {"response_format": {"type": "json_schema", "json_schema": SCHEMA}, "chat_template_kwargs": {}}),
        (CHAT, short | {"structured_outputs": {"choice": ["a"]}, "max_completion_tokens": MAX_TOKENS}),
        (RESPONSES, {"model": MODEL, "input": items, "tools": flat, "max_output_tokens": MAX_TOKENS, "stream": True}),
        (RESPONSES, {
            "model": MODEL, "input": "hi", "instructions": "x", "text": {"format": {"type": "json_schema", **SCHEMA}},
            "max_output_tokens": MAX_TOKENS, "reasoning": {"effort": "low"}, "include": [], "top_logprobs": 1,
        }),
        (EMBEDDINGS, {"model": MODEL, "input": ["a", "b"], "encoding_format": "float"}),
        (EMBEDDINGS, {"model": MODEL, "input": [[1, 2], [3]], "encoding_format": "base64"}),
        (EMBEDDINGS, {"model": MODEL, "messages": [{"role": "user", "content": [image_part(a_picture())]}]}),
    ]  # fmt: skip


def form(file: bytes, **fields: str) -> tuple[bytes, str]:
    """Return a form with a recording, and its content type."""
    border = b"x-border-x"
    head = b'content-disposition: form-data; name="%s"'
    parts = [head % name.encode() + b"\r\n\r\n" + value.encode() for name, value in fields.items()]
    parts.append(head % b"file" + b'; filename="a.wav"\r\ncontent-type: audio/wav\r\n\r\n' + file)
    pieces = [b"--" + border + b"\r\n" + part + b"\r\n" for part in parts]
    return b"".join((*pieces, b"--", border, b"--\r\n")), f"multipart/form-data; boundary={border.decode()}"


def calls() -> Mapping[str, Message]:
    """Return a message that is answered for each method, by the method's path."""
    part, image, audio = ContentPart(text="hi"), Media(data=a_picture()), Media(data=a_recording())
    call = ToolCall(id="c", function=FunctionCall(name="f", arguments="{}"))
    turns = [
        ChatMessage(role=ROLE_USER, parts=[part, ContentPart(image=image), ContentPart(audio=audio)]),
        ChatMessage(role=ROLE_ASSISTANT, tool_calls=[call]),
        ChatMessage(role=ROLE_TOOL, tool_call_id="c", parts=[part]),
    ]
    tool = Tool(function=Function(name="f", parameters='{"type": "object"}'))
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.5, seed=1, logit_bias={5: 1.0}, stop=["x"])
    whole = ChatRequest(model=MODEL, messages=turns, sampling=sampling, tools=[tool], n=1)
    short = ChatRequest(model=MODEL, messages=[ChatMessage(role=ROLE_USER, parts=[part])], sampling=sampling)
    return {
        f"{_AUTOGLM}{_CHAT}Complete": CompleteRequest(chat=whole),
        f"{_AUTOGLM}{_CHAT}StreamComplete": StreamCompleteRequest(chat=short),
        f"{_AUTOGLM}EmbeddingService/Embed": EmbedRequest(model=MODEL, input=[part, ContentPart(image=image)]),
        f"{_AUTOGLM}ModelService/ListModels": ListModelsRequest(),
        f"{_AUTOGLM}TranscriptionService/Transcribe": TranscribeRequest(audio=audio),
        "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest(service="autoglm.v1.ChatService"),
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(
            file_containing_symbol="autoglm.v1.ChatService"
        ),
    }


def any_of(draw: Random, values: Mapping[str, Message]) -> tuple[str, Message]:
    """Return one of `values`, the message as a copy."""
    name = draw.choice(list(values))
    copy = type(values[name])()
    copy.CopyFrom(values[name])
    return name, copy
