"""What a client's own text can do by way of an error: nothing to others, and no more than a line to itself."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import grpc
import httpx
import pytest
from grpc_status import rpc_status

from autoglm.cli.api import image_bytes_part
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, Media
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER, Function, SamplingParams, TextChoice, Tool, ToolChoice

from ..asking import Asker
from ..faults.attacks.sending import OK, grpc_outcome, http_outcome, user
from ..faults.neighbour import Stay, neighbour, request
from ..mesh import Mesh
from ..waiting import NET_SECONDS, at_the_same_time, eventually

LONG = 100_000
TEXT = "é" * LONG  # two bytes each, and an escape of six in JSON and in a header
ERROR_BYTES = 8 * 2**10  # a header or trailer of more is refused by gRPC's peers
TYPED = {"invalid_request_error", "not_found", "unsupported_media", "request_too_large"}


@contextmanager
def others_unharmed(mesh: Mesh) -> Iterator[None]:
    """Stream an answer around the block, again if it ends first; fails the test if anything of it is missing."""
    eventually(mesh.is_whole, "the mesh is whole")
    stay = Stay()
    with neighbour(mesh.http_url) as quiet:

        def stream(ended: threading.Event) -> None:
            while not stay.faults:
                quiet.stream(stay)
                if ended.is_set():
                    break

        with at_the_same_time(stream):
            yield
    assert stay.faults == []


def schema(value: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value, "strict": True}}}


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f"} | function}], "tool_choice": "required"}


FIELDS: dict[str, dict[str, Any]] = {
    "an expression": {"structured_outputs": {"regex": "(?=a)" + TEXT}},
    "a grammar": {"structured_outputs": {"grammar": f"start: {TEXT}"}},
    "an unknown rule": {"structured_outputs": {"grammar": "start: " + "r" * LONG}},
    "a type of a schema": schema({"type": TEXT}),
    "a keyword of a schema": schema({"type": "object", "properties": {TEXT: {"type": TEXT}}}),
    "a reference of a schema": schema({"$ref": f"#/$defs/{TEXT}"}),
    "a format": {"response_format": {"type": TEXT}},
    "a name of a function": tool(name=TEXT),
    "parameters of a function": tool(parameters={"type": TEXT}),
    "a function to call": tool() | {"tool_choice": {"type": "function", "function": {"name": TEXT}}},
    "a model": {"model": TEXT},
    "a role": {"messages": [{"role": TEXT, "content": "hi"}]},
    "a type of a part": {"messages": user({"type": TEXT})},
    "an address": {"messages": user({"type": "image_url", "image_url": {"url": f"https://{TEXT}/a.png"}})},
    "no address": {"messages": user({"type": "image_url", "image_url": {"url": TEXT}})},
    "a picture": {"messages": user(image_bytes_part(TEXT.encode()))},
    "a format of a recording": {"messages": user({"type": "input_audio", "input_audio": {"data": "", "format": TEXT}})},
    "a biased token": {"logit_bias": {TEXT: 1}},
    "a number": {"temperature": TEXT},
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_long_text_is_cut_in_its_error(mesh: Mesh, ask: Asker, field: str) -> None:
    with others_unharmed(mesh):
        response = ask.http.post("/v1/chat/completions", json=request(max_tokens=4) | FIELDS[field])
        assert http_outcome(response) in TYPED, response.text[:500]
        assert len(response.content) < ERROR_BYTES
        assert sum(len(name) + len(value) for name, value in response.headers.raw) < ERROR_BYTES


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/responses", {"input": "hi", "text": {"format": {"type": "grammar", "definition": TEXT}}}),
        ("/v1/responses", {"input": [{"type": TEXT}]}),
        ("/v1/responses", {"input": [{"type": "function_call_output", "call_id": TEXT, "output": ""}]}),
        ("/v1/embeddings", {"input": "hi", "model": TEXT}),
        ("/v1/embeddings", {"input": "hi", "encoding_format": TEXT}),
        ("/v1/models/" + "m" * 20_000, None),
        ("/v1/" + "p" * 20_000, {}),
    ],
)
def test_so_it_is_on_every_route(mesh: Mesh, ask: Asker, path: str, fields: dict[str, Any] | None) -> None:
    with others_unharmed(mesh):
        body = None if fields is None else {"model": "autoglm-phone-9b"} | fields
        response = ask.http.get(path) if body is None else ask.http.post(path, json=body)
        assert http_outcome(response) in TYPED, response.text[:500]
        assert len(response.content) < ERROR_BYTES


def test_a_long_form_is_cut_too(mesh: Mesh, ask: Asker) -> None:
    with others_unharmed(mesh):
        form = {"model": TEXT, "response_format": TEXT, "language": TEXT}
        response = ask.http.post("/v1/audio/transcriptions", data=form, files={"file": ("a" * 5000, TEXT.encode())})
        assert http_outcome(response) in TYPED, response.text[:500]
        assert len(response.content) < ERROR_BYTES


@pytest.mark.parametrize("header", ["x-request-id", "x-request-timeout", "authorization", "content-type"])
def test_a_long_header_is_not_sent_back(mesh: Mesh, ask: Asker, header: str) -> None:
    with others_unharmed(mesh):
        response = ask.http.post("/v1/chat/completions", json=request(max_tokens=4), headers={header: "h" * 30_000})
        assert response.status_code < 500
        assert "untyped" not in http_outcome(response)
        assert sum(len(name) + len(value) for name, value in response.headers.raw) < ERROR_BYTES


def message(part: ContentPart) -> ChatMessage:
    return ChatMessage(role=ROLE_USER, parts=[part])


HI = message(ContentPart(text="hi"))
REQUIRED = ToolChoice(function="f")
CHATS: dict[str, Callable[[], ChatRequest]] = {
    "an expression": lambda: ChatRequest(messages=[HI], sampling=SamplingParams(regex="(?=a)" + TEXT)),
    "a grammar": lambda: ChatRequest(messages=[HI], sampling=SamplingParams(grammar=TEXT)),
    "a schema": lambda: ChatRequest(messages=[HI], sampling=SamplingParams(json_schema=f'{{"type": "{TEXT}"}}')),
    "no schema": lambda: ChatRequest(messages=[HI], sampling=SamplingParams(json_schema=TEXT)),
    "a choice": lambda: ChatRequest(messages=[HI], sampling=SamplingParams(choice=TextChoice(texts=[TEXT, ""]))),
    "a model": lambda: ChatRequest(messages=[HI], model=TEXT),
    "an address": lambda: ChatRequest(messages=[message(ContentPart(image=Media(url=f"https://{TEXT}/")))]),
    "a picture": lambda: ChatRequest(messages=[message(ContentPart(image=Media(data=TEXT.encode())))]),
    "a function": lambda: ChatRequest(messages=[HI], tools=[Tool(function=Function(name=TEXT))]),
    "parameters": lambda: ChatRequest(
        messages=[HI], tools=[Tool(function=Function(name="f", parameters=TEXT))], tool_choice=REQUIRED
    ),
}


@pytest.mark.parametrize("field", CHATS)
def test_a_long_text_is_cut_over_grpc(mesh: Mesh, channel: grpc.Channel, field: str) -> None:
    with others_unharmed(mesh), pytest.raises(grpc.RpcError) as raised:
        ChatServiceStub(channel).Complete(CompleteRequest(chat=CHATS[field]()), timeout=NET_SECONDS)
    assert grpc_outcome(raised.value) in TYPED
    call = cast(grpc.Call, raised.value)
    trailers = sum(len(name) + len(value) for name, value in call.trailing_metadata() or ())
    status = rpc_status.from_call(call)
    assert status is not None
    assert trailers + len((call.details() or "").encode()) < ERROR_BYTES


def test_many_long_errors_at_once_end_no_stream(mesh: Mesh) -> None:
    with others_unharmed(mesh), httpx.Client(base_url=mesh.http_url, timeout=NET_SECONDS, trust_env=False) as http:
        outcomes = set[str]()

        def send() -> None:
            for fields in FIELDS.values():
                outcomes.add(http_outcome(http.post("/v1/chat/completions", json=request(max_tokens=4) | fields)))

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes <= TYPED | {OK}
