"""gRPC messages with too many or too long things: what the client sees, and that nothing was made of them."""

from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from autoglm.gateway.message_bounds import check_fields
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart
from autoglm.v1.embeddings_pb2 import EmbedRequest
from autoglm.v1.generation_pb2 import (
    ROLE_ASSISTANT,
    ROLE_TOOL,
    ROLE_USER,
    Function,
    FunctionCall,
    SamplingParams,
    TextChoice,
    Tool,
    ToolCall,
)

from ...waiting import NET_SECONDS
from .conftest import BUNDLE, Client
from .test_gateway_bounds import ARRAY, MANY, STRING


def said(*texts: str) -> ChatMessage:
    return ChatMessage(role=ROLE_USER, parts=[ContentPart(text=each) for each in texts])


def made(count: int) -> ChatMessage:
    return ChatMessage(role=ROLE_ASSISTANT, tool_calls=[ToolCall(id="c", function=FunctionCall(name="f"))] * count)


def tool(name: str = "f", parameters: str = "") -> Tool:
    return Tool(function=Function(name=name, parameters=parameters))


def sampling(**fields: Any) -> ChatRequest:
    return ChatRequest(messages=[said("hi")], sampling=SamplingParams(**fields))


GRPC: dict[str, tuple[ChatRequest, str, str]] = {
    "messages": (ChatRequest(messages=[said("a")] * 2049), "chat.messages", ARRAY),
    "very many messages": (ChatRequest(messages=[said("a")] * MANY), "chat.messages", ARRAY),
    "empty messages": (ChatRequest(messages=[ChatMessage()] * 900_000), "chat.messages", ARRAY),
    "parts of a message": (ChatRequest(messages=[said(*"a" * 4097)]), "chat.messages", ARRAY),
    "empty parts": (ChatRequest(messages=[ChatMessage(parts=[ContentPart()] * 900_000)]), "chat.messages", ARRAY),
    "parts of all messages": (ChatRequest(messages=[said(*"a" * 9)] * 500), "chat.messages", ARRAY),
    "calls": (ChatRequest(messages=[said("hi"), made(4097)]), "chat.messages", ARRAY),
    "the id of a call": (
        ChatRequest(messages=[said("hi"), ChatMessage(role=ROLE_ASSISTANT, tool_calls=[ToolCall(id="c" * 4097)])]),
        "chat.messages[1].tool_calls",
        STRING,
    ),
    "empty results": (ChatRequest(messages=[ChatMessage(role=ROLE_TOOL)] * 2049), "chat.messages", ARRAY),
    "tools": (ChatRequest(messages=[said("hi")], tools=[tool(f"f{i}") for i in range(129)]), "chat.tools", ARRAY),
    "empty tools": (ChatRequest(messages=[said("hi")], tools=[Tool()] * 900_000), "chat.tools", ARRAY),
    "the parameters of a tool": (
        ChatRequest(messages=[said("hi")], tools=[tool(parameters='{"description":"' + "a" * 300_000 + '"}')]),
        "chat.tools[0].function.parameters",
        STRING,
    ),
    "values of tools": (
        ChatRequest(
            messages=[said("hi")], tools=[tool(f"f{i}", '{"enum":[' + "0," * 40_000 + "0]}") for i in range(3)]
        ),
        "chat.tools[1].function.parameters",
        ARRAY,
    ),
    "values of a schema": (
        sampling(json_schema='{"enum":[' + "[]," * MANY + "0]}"),
        "chat.sampling.json_schema",
        ARRAY,
    ),
    "a schema": (sampling(json_schema='{"const":"' + "a" * 300_000 + '"}'), "chat.sampling.json_schema", STRING),
    "a regular expression": (sampling(regex="a" * 300_000), "chat.sampling.regex", STRING),
    "a grammar": (sampling(grammar="a" * 300_000), "chat.sampling.grammar", STRING),
    "texts to choose from": (sampling(choice=TextChoice(texts=["a"] * 4097)), "chat.sampling.choice", ARRAY),
    "a text to choose": (sampling(choice=TextChoice(texts=["a" * 300_000])), "chat.sampling.choice", STRING),
    "stop strings": (sampling(stop=["a"] * 5), "chat.sampling.stop", ARRAY),
    "very many stop strings": (sampling(stop=["a"] * MANY), "chat.sampling", ARRAY),
    "a stop string": (sampling(stop=["a", "b" * 1025]), "chat.sampling.stop[1]", STRING),
    "biased tokens": (sampling(logit_bias=dict.fromkeys(range(4097), 1.0)), "chat.sampling.logit_bias", ARRAY),
    "very many biased tokens": (
        sampling(logit_bias=dict.fromkeys(range(MANY), 1.0)),
        "chat.sampling.logit_bias",
        ARRAY,
    ),
}


async def refused(client: Client, method: str, request: CompleteRequest | EmbedRequest) -> tuple[str, str, str]:
    """Return the reason, the field and the code that a call is refused with."""
    stub: Any = client.channel.unary_unary(f"/autoglm.v1.{method}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(request.SerializeToString(), timeout=NET_SECONDS)
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        for message in (info, bad):
            detail.Unpack(message)
    return info.reason, bad.field_violations[0].field, info.metadata["code"]


@pytest.mark.parametrize("name", GRPC)
async def test_a_grpc_chat_with_too_much(name: str, shared: Client) -> None:
    chat, param, code = GRPC[name]
    before = shared.mesh.calls
    found = await refused(shared, "ChatService/Complete", CompleteRequest(chat=chat))
    assert found == ("INVALID_REQUEST_ERROR", param, code)
    assert shared.mesh.calls == before


@pytest.mark.parametrize("parts", [[ContentPart(text="a")] * 2049, [ContentPart()] * 900_000])
async def test_too_much_to_embed_over_grpc(parts: list[ContentPart], shared: Client) -> None:
    before = shared.mesh.calls
    found = await refused(shared, "EmbeddingService/Embed", EmbedRequest(model=BUNDLE, input=parts))
    assert found == ("INVALID_REQUEST_ERROR", "input", ARRAY)
    assert shared.mesh.calls == before


def test_a_message_with_few_fields_may_be_large() -> None:
    chat = ChatRequest(messages=[said("a" * 1_000_000, "你" * 1_000_000)] * 9, tools=[tool("f", "{}")] * 128)
    check_fields(CompleteRequest(chat=chat).SerializeToString(), CompleteRequest.DESCRIPTOR)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\xff\xff\xff\xff\x0f" + b"a" * 200_000,  # a length beyond the end
        b"\xff" * 200_000,  # a number without an end
        b"\x0a\x80\x80\x0c\x12" + b"\xff" * 200_000,
        b"\x0f" * 200_000,  # a wire type that is not there
        b"\x09" * 200_000 + b"\x09",  # cut off in the last field
    ],
)
def test_a_large_message_that_is_none_is_refused_before_it_is_parsed(data: bytes) -> None:
    with pytest.raises(DecodeError):
        check_fields(data, CompleteRequest.DESCRIPTOR)
    with pytest.raises(DecodeError):
        CompleteRequest.FromString(data)
