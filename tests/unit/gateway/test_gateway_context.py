"""Text that the context cannot hold is not sent to the decoder, and others are served while a large request is read."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from autoglm.v1.chat_pb2 import ChatRequest, CompleteRequest, ContentPart
from autoglm.v1.embeddings_pb2 import EmbedRequest

from ...waiting import NET_SECONDS
from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import image_part, png
from .test_gateway_bounds import HI, function, refusals, text
from .test_gateway_bounds_grpc import refused, said, tool
from .test_gateway_parsing import error_of

CONTEXT = "context_length_exceeded"
LONG = 5000  # bytes of text, more than the fake decoder's context can hold below
TEXTS: dict[str, tuple[dict[str, Any], str]] = {
    "a message": ({"messages": [{"role": "user", "content": "a" * LONG}]}, "messages"),
    "characters of several bytes": ({"messages": [{"role": "user", "content": "好" * (LONG // 3)}]}, "messages"),
    "a system prompt": ({"messages": [{"role": "system", "content": "a" * LONG}, *HI]}, "messages"),
    "messages together": ({"messages": [{"role": "user", "content": "a" * 100}] * 50}, "messages"),
    "parts together": ({"messages": [{"role": "user", "content": [text("a" * 100)] * 50}]}, "messages"),
    "the arguments of a call": (
        {
            "messages": [
                *HI,
                {"role": "assistant", "tool_calls": [{"id": "c", **function(arguments="[" * LONG)}]},
                {"role": "tool", "tool_call_id": "c", "content": "ok"},
            ]
        },
        "messages",
    ),
    "the name of a call": (
        {"messages": [*HI, {"role": "assistant", "tool_calls": [{"id": "c", **function("f" * LONG)}]}]},
        "messages",
    ),
    "the description of a tool": ({"tools": [function(description="a" * LONG)]}, "tools"),
    "the parameters of a tool": ({"tools": [function(parameters={"description": "a" * LONG})]}, "tools"),
}


@pytest_asyncio.fixture(loop_scope="session")
async def narrow(serve: Serve, mesh: FakeMesh) -> Client:
    """A gateway whose decoder's context holds few bytes."""
    mesh.decoder.max_text_bytes, mesh.decoder.context_length = 4000, 200
    return await serve()


async def test_text_that_cannot_fit_is_not_sent_to_the_decoder(narrow: Client, mesh: FakeMesh) -> None:
    for name, (fields, param) in TEXTS.items():
        for stream in (False, True):
            response = await narrow.chat("hi", stream=stream, **fields)
            assert refusals(response) == (400, param, CONTEXT), name
            assert "200 tokens" in error_of(response)["message"]
    assert mesh.calls == 0


@pytest.mark.parametrize("fields", [{"input": "a" * LONG}, {"input": "hi", "instructions": "a" * LONG}])
async def test_a_response_to_text_that_cannot_fit(fields: dict[str, Any], narrow: Client, mesh: FakeMesh) -> None:
    response = await narrow.http.post("/v1/responses", json={"model": BUNDLE, "stream": True, **fields})
    assert refusals(response) == (400, "input", CONTEXT)
    assert mesh.calls == 0


async def test_text_that_cannot_be_embedded_is_not_sent(narrow: Client, mesh: FakeMesh) -> None:
    long = "a" * LONG
    for fields, param in (
        ({"input": long}, "input"),
        ({"input": ["a", long, long]}, "input[1]"),
        ({"messages": [{"role": "user", "content": long}]}, "messages"),
    ):
        response = await narrow.http.post("/v1/embeddings", json={"model": BUNDLE, **fields})
        assert refusals(response) == (400, param, CONTEXT)
    parts = [ContentPart(text="a"), ContentPart(text=long)]
    found = await refused(narrow, "EmbeddingService/Embed", EmbedRequest(input=parts))
    assert found == ("INVALID_REQUEST_ERROR", "input[1]", CONTEXT)
    assert mesh.calls == 0


async def test_text_that_cannot_fit_over_grpc(narrow: Client, mesh: FakeMesh) -> None:
    for chat, param in (
        (ChatRequest(messages=[said("a" * LONG)]), "chat.messages"),
        (ChatRequest(messages=[said(*["a" * 100] * 50)]), "chat.messages"),
        (ChatRequest(messages=[said("hi")], tools=[tool(parameters='{"title":"' + "a" * LONG + '"}')]), "chat.tools"),
    ):
        found = await refused(narrow, "ChatService/Complete", CompleteRequest(chat=chat))
        assert found == ("INVALID_REQUEST_ERROR", param, CONTEXT)
    assert mesh.calls == 0


async def test_media_do_not_count_as_text(narrow: Client) -> None:
    assert (await narrow.chat([image_part(png(64, 64)), text("hi")])).status_code == 200


async def test_what_a_conversation_of_an_agent_has_is_taken(shared: Client) -> None:
    turns = [*HI, {"role": "assistant", "content": "ok"}] * 1000
    tools = [function(f"f{i}", parameters={"type": "object", "properties": {"x": {}}}) for i in range(128)]
    fields = {"messages": [*turns, *HI], "tools": tools, "metadata": {str(i): "v" * 512 for i in range(16)}}
    assert (await shared.chat("hi", stop=["a" * 1024] * 4, **fields)).status_code == 200


class Blocker:
    """Makes a function wait in its thread until it may go on."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.reached, self.release, self._work = threading.Event(), threading.Event(), work

    def __call__(self, *given: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            self.reached.set()
            assert self.release.wait(NET_SECONDS)
        return self._work(*given)


ESCAPED = "data:image/png;base64," + quote("/" * 200_000, safe="")
LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "json": ("autoglm.gateway.openai.types.parse_json", {"content": "a" * 200_000}),
    "escapes": (
        "autoglm.gateway.media.verify._unescaped",
        {"content": [{"type": "image_url", "image_url": {"url": ESCAPED}}]},
    ),
    "tools": (
        "autoglm.gateway.tool_checks.read_schema",
        {"content": "hi", "tools": [function(parameters={"type": "object", "title": "a" * 200_000})]},
    ),
}


def blocked(name: str, monkeypatch: pytest.MonkeyPatch) -> Blocker:
    module, _, attribute = name.rpartition(".")
    blocker = Blocker(getattr(__import__(module, fromlist=[attribute]), attribute))
    monkeypatch.setattr(name, blocker)
    return blocker


@pytest.mark.parametrize("name", LARGE)
async def test_others_are_answered_while_a_large_body_is_read(
    name: str, shared: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, fields = LARGE[name]
    blocker = blocked(target, monkeypatch)
    large = asyncio.create_task(shared.chat(**fields))
    assert await asyncio.to_thread(blocker.reached.wait, NET_SECONDS)
    assert (await shared.chat("hi")).status_code == 200
    assert not large.done()
    blocker.release.set()
    assert (await large).status_code in (200, 415)


async def test_a_large_body_is_left_at_its_deadline(shared: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = blocked("autoglm.gateway.openai.types.parse_json", monkeypatch)
    body = {"model": BUNDLE, "messages": [{"role": "user", "content": "a" * 200_000}]}
    response = await shared.http.post("/v1/chat/completions", json=body, headers={"x-request-timeout": "0.2"})
    blocker.release.set()
    assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("target", ["grpc_calls.check_fields", "servicer.to_conversation"])
async def test_others_are_answered_while_a_large_message_is_read(
    target: str, shared: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = blocked(f"autoglm.gateway.{target}", monkeypatch)
    stub: Any = shared.channel.unary_unary("/autoglm.v1.ChatService/Complete")
    request = CompleteRequest(chat=ChatRequest(messages=[said("a" * 200_000)]))
    large = asyncio.ensure_future(stub(request.SerializeToString(), timeout=NET_SECONDS))
    assert await asyncio.to_thread(blocker.reached.wait, NET_SECONDS)
    small = CompleteRequest(chat=ChatRequest(messages=[said("hi")]))
    assert await stub(small.SerializeToString(), timeout=NET_SECONDS)
    assert not large.done()
    blocker.release.set()
    assert await large
