"""One trace per request, over either door, before the fake services; a real OTLP receiver gets it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
import pytest_asyncio

from autoglm.common import tracing
from autoglm.common.errors import InternalError, InvalidRequest
from autoglm.gateway.context import new_context
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, Media
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER

from ...otlp import ReceivedSpan, Receiver, traced
from ...waiting import eventually_async
from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import image_part, png

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, SPAN = PARENT.split("-")[1:3]
HEADERS = {"traceparent": PARENT, "tracestate": "a=b"}
SECRET = "a-secret-of-the-client"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver that this process sends its traces to."""
    with traced("gateway", monkeypatch) as receiver:
        yield receiver


@pytest_asyncio.fixture(loop_scope="session")
async def client(receiver: Receiver, serve: Serve) -> AsyncIterator[Client]:
    """A gateway that traces."""
    yield await serve()


async def arrived(receiver: Receiver) -> list[ReceivedSpan]:
    """Return all spans, once a request's own is among them; it ends after the client has its answer."""

    async def is_complete() -> bool:
        return any(each.kind == "server" for each in receiver.spans)

    await eventually_async(is_complete, "the span of the request arrives")
    return receiver.spans


def none_arrived(receiver: Receiver) -> bool:
    """Send what is left, and return whether that is nothing."""
    tracing.stop()
    return not receiver.spans


async def ask(client: Client, door: str, *parts: Any) -> None:
    """Ask for an answer with the client's own trace."""
    if door == "http":
        body = {"messages": [{"role": "user", "content": [image_part(png()), {"type": "text", "text": SECRET}]}]}
        sent = {**body, "model": BUNDLE, "max_tokens": 7}
        await client.http.post("/v1/chat/completions", json=sent, headers=HEADERS)
        return
    message = ChatMessage(role=ROLE_USER, parts=[ContentPart(image=Media(data=png())), ContentPart(text=SECRET)])
    request = CompleteRequest(chat=ChatRequest(messages=[message]))
    request.chat.sampling.max_tokens = 7
    with suppress(grpc.aio.AioRpcError):
        await ChatServiceStub(client.channel).Complete(request, metadata=(*HEADERS.items(),))


NAMES = {"http": "POST /v1/chat/completions", "grpc": "autoglm.v1.ChatService/Complete"}
DOORS = pytest.mark.parametrize("door", NAMES)


@DOORS
async def test_a_request_is_one_trace_below_its_clients_span(
    client: Client, mesh: FakeMesh, receiver: Receiver, door: str
) -> None:
    await ask(client, door)
    await arrived(receiver)
    assert receiver.tree(TRACE) == [
        f"autoglm-gateway: {NAMES[door]}",
        "  autoglm-gateway: cache lookup",
        "    autoglm-gateway: encode image",
        "  autoglm-gateway: chat autoglm-phone-fake",
    ]
    spans = {each.name: each for each in receiver.spans}
    assert len(spans) == len(receiver.spans) == 4  # nothing else is traced: no polls, no other request
    server, chat = spans[NAMES[door]], spans["chat autoglm-phone-fake"]
    assert (server.kind, server.span.parent_span_id.hex(), server.span.trace_state) == ("server", SPAN, "a=b")
    assert {each.status for each in receiver.spans} == {"unset"}
    assert chat.events == ["first token"]
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "autoglm-phone-fake",
        "gen_ai.request.max_tokens": 7,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 4,
        "autoglm.gate.image": 0.25,
    }
    assert expected.items() <= chat.attributes.items()
    assert spans["cache lookup"].attributes["autoglm.cache.outcome"] == "miss"
    for control, caller in ((mesh.vision.encode, "encode image"), (mesh.decoder.generate, chat.name)):
        (metadata,) = control.metadata
        assert metadata["traceparent"] == f"00-{TRACE}-{spans[caller].span.span_id.hex()}-01"
        assert (metadata["tracestate"], metadata["request_id"]) == ("a=b", metadata["x-request-id"])


@DOORS
async def test_nothing_that_was_sent_or_answered_is_in_a_span(
    client: Client, mesh: FakeMesh, receiver: Receiver, door: str
) -> None:
    mesh.decoder.pieces = ["the-answer"]
    await ask(client, door)
    text = "".join(str(each.span) for each in await arrived(receiver))
    assert SECRET not in text
    assert "the-answer" not in text


@DOORS
@pytest.mark.parametrize(
    ("error", "status"), [(InternalError("it broke"), "error: internal"), (InvalidRequest(SECRET), "unset")]
)
async def test_an_error_is_the_status_of_its_spans(
    client: Client, mesh: FakeMesh, receiver: Receiver, door: str, error: Any, status: str
) -> None:
    """The client's own mistakes are no error of the server's."""
    mesh.decoder.generate.error = error
    await ask(client, door)
    spans = {each.name: each for each in await arrived(receiver)}
    assert spans[NAMES[door]].status == status
    assert spans["chat autoglm-phone-fake"].status == f"error: {error.type}"
    assert spans[NAMES[door]].attributes["error.type"] == error.type
    assert SECRET not in "".join(str(each.span) for each in receiver.spans)


async def test_a_stream_that_breaks_off_is_an_error(client: Client, mesh: FakeMesh, receiver: Receiver) -> None:
    mesh.decoder.generate.error, mesh.decoder.after = InternalError("it broke"), 2
    response = await client.chat("hi", stream=True)
    assert response.status_code == 200
    spans = {each.name: each for each in await arrived(receiver)}
    assert spans[NAMES["http"]].status == "error: internal"
    assert spans["chat autoglm-phone-fake"].events == ["first token"]


async def test_probes_are_not_traced(client: Client, receiver: Receiver) -> None:
    for path in ("/health/live", "/health/ready", "/metrics"):
        await client.http.get(path, headers={"traceparent": PARENT})
    assert none_arrived(receiver)


async def test_a_client_that_does_not_sample_is_not_traced(client: Client, mesh: FakeMesh, receiver: Receiver) -> None:
    headers = {"traceparent": f"{PARENT[:-2]}00"}
    body = {"model": BUNDLE, "messages": [{"role": "user", "content": "hi"}]}
    await client.http.post("/v1/chat/completions", json=body, headers=headers)
    assert none_arrived(receiver)
    assert mesh.decoder.generate.metadata[0]["traceparent"].split("-")[1::2] == [TRACE, "00"]


async def test_each_choice_has_a_span_and_shared_media_one_lookup_each(client: Client, receiver: Receiver) -> None:
    await client.chat([image_part(png()), image_part(png())], n=2)
    spans = await arrived(receiver)
    assert sorted(each.attributes["autoglm.choice.index"] for each in spans if each.name.startswith("chat ")) == [0, 1]
    outcomes = [each.attributes["autoglm.cache.outcome"] for each in spans if each.name == "cache lookup"]
    assert sorted(outcomes) == ["miss", "shared"]
    assert len({each.trace for each in spans}) == 1


async def test_the_trace_of_a_request_is_known_while_it_runs(receiver: Receiver) -> None:
    context = new_context({"traceparent": PARENT}, "GET")
    assert context.trace_id == context.span.trace_id == TRACE
    context.end_span()
    assert new_context({"traceparent": f"{PARENT[:-2]}00"}, "GET").trace_id is None  # nobody would find it


async def test_while_tracing_is_off_the_clients_trace_is_passed_on(serve: Serve, mesh: FakeMesh) -> None:
    await ask(await serve(), "http")
    (metadata,) = mesh.decoder.generate.metadata
    assert (metadata["traceparent"], metadata["tracestate"]) == (PARENT, "a=b")
    context = new_context({"traceparent": PARENT}, "GET")
    assert not context.span.is_recorded
    assert context.trace_id == TRACE
