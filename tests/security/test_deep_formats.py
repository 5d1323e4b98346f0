"""Formats that are deep, or that lead nowhere, are refused by name on every way in; the decoder goes on."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER, Function, SamplingParams, Tool, ToolChoice

from ..asking import Asker
from ..faults.attacks.sending import OK, grpc_outcome, http_outcome
from ..faults.neighbour import request
from ..mesh import Mesh
from ..waiting import NET_SECONDS, eventually

DEEP = 5000
Schema = dict[str, Any]


def chained(link: Callable[[str], Schema]) -> Schema:
    """A schema whose definitions lead from one to the next, each by way of `link`."""
    definitions = {f"d{number}": link(f"#/$defs/d{number + 1}") for number in range(DEEP)}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": definitions | {f"d{DEEP}": {}}}


SCHEMAS: dict[str, Callable[[], Schema]] = {
    "references": lambda: chained(lambda after: {"$ref": after}),
    "members": lambda: chained(lambda after: {"type": "object", "properties": {"a": {"$ref": after}}}),
    "required members": lambda: chained(
        lambda after: {"type": "object", "properties": {"a": {"$ref": after}}, "required": ["a"]}
    ),
    "items": lambda: chained(lambda after: {"type": "array", "items": {"$ref": after}, "minItems": 1}),
    "first items": lambda: chained(lambda after: {"type": "array", "prefixItems": [{"$ref": after}]}),
    "alternatives": lambda: chained(lambda after: {"anyOf": [{"type": "null"}, {"$ref": after}]}),
    "intersections": lambda: chained(lambda after: {"allOf": [{"$ref": after}, {}]}),
    "itself among alternatives": lambda: {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "a member without an end": lambda: {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
}
LOOPS: dict[str, Schema] = {
    "itself": {"$ref": "#"},
    "each other": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "itself in an intersection": {"allOf": [{"$ref": "#"}]},
}
NEVER: dict[str, dict[str, Any]] = {
    "no character": {"regex": r"[^\s\S]"},
    "an empty choice": {"choice": []},
    "a rule without an end": {"grammar": 'start: "a" start'},
    "a rule that is itself": {"grammar": "start: start"},
    "repetitions of optional ones": {"regex": "(x?){500}x{500}"},
    "repetitions in threes": {"regex": "((b{500}){500}){500}"},
    "nested groups": {"regex": "(" * DEEP + "b" + ")*" * DEEP},
    "nested alternatives": {"regex": "(a|" * DEEP + "b" + ")" * DEEP},
    "nested groups of a rule": {"grammar": "start: " + "(" * DEEP + '"a"' + ")" * DEEP},
}
HEAVY: dict[str, dict[str, Any]] = {
    "a repeated rule": {"grammar": 'start: r{2000000}\nr: "a" | "b"'},
    "rules from the left": {
        "grammar": "start: r0\n" + "\n".join(f'r{n}: r{n + 1} "x" | "y"' for n in range(DEEP)) + f'\nr{DEEP}: "z"'
    },
}


@pytest.fixture(autouse=True)
def same_decoder(mesh: Mesh, ask: Asker) -> Iterator[None]:
    """The decoder's process is the same after each test, and answers."""
    eventually(mesh.is_whole, "the mesh is whole")
    before = mesh.replica("decoder").pid
    yield
    assert ask.post("hi", max_tokens=2).status_code == 200
    assert mesh.replica("decoder").pid == before


def told(schema: Schema) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the routes and fields in which a schema can be sent over HTTP."""
    chat = "/v1/chat/completions"
    yield chat, {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    yield chat, {"structured_outputs": {"json": schema}}
    function = {"name": "f", "parameters": schema}
    yield chat, {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    yield "/v1/responses", {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}}


def asked(ask: Asker, path: str, fields: dict[str, Any]) -> str:
    """Send a request with these fields, and return what is learned."""
    hi = {"input": "hi", "max_output_tokens": 20} if path == "/v1/responses" else {"max_tokens": 4}
    base = {"model": "autoglm-phone-9b"} if path == "/v1/responses" else request()
    return http_outcome(ask.http.post(path, json=base | hi | fields))


def called(channel: grpc.Channel, chat: ChatRequest) -> str:
    try:
        ChatServiceStub(channel).Complete(CompleteRequest(chat=chat), timeout=NET_SECONDS)
    except grpc.RpcError as error:
        return grpc_outcome(error)
    return OK


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_deep_schema_is_bounded(ask: Asker, channel: grpc.Channel, name: str) -> None:
    schema = SCHEMAS[name]()
    outcomes = {asked(ask, path, fields) for path, fields in told(schema)} | over_grpc(channel, schema)
    assert outcomes <= {"invalid_request_error", OK}


@pytest.mark.parametrize("name", LOOPS)
def test_a_schema_that_only_names_itself_is_refused(ask: Asker, channel: grpc.Channel, name: str) -> None:
    outcomes = {asked(ask, path, fields) for path, fields in told(LOOPS[name])} | over_grpc(channel, LOOPS[name])
    assert outcomes == {"invalid_request_error"}


def over_grpc(channel: grpc.Channel, schema: Schema) -> set[str]:
    """Send a schema in both of the fields that gRPC has for one."""
    said, text = [ChatMessage(role=ROLE_USER, parts=[ContentPart(text="hi")])], json.dumps(schema)
    function = Tool(function=Function(name="f", parameters=text))
    return {
        called(channel, ChatRequest(messages=said, sampling=SamplingParams(max_tokens=4, json_schema=text))),
        called(
            channel,
            ChatRequest(
                messages=said,
                tools=[function],
                tool_choice=ToolChoice(function="f"),
                sampling=SamplingParams(max_tokens=4),
            ),
        ),
    }


@pytest.mark.parametrize("name", NEVER)
def test_a_format_that_no_answer_can_have_is_refused(ask: Asker, name: str) -> None:
    assert asked(ask, "/v1/chat/completions", {"structured_outputs": NEVER[name]}) == "invalid_request_error"


@pytest.mark.parametrize("name", HEAVY)
def test_a_format_that_is_heavy_is_bounded(ask: Asker, name: str) -> None:
    heavy = {"structured_outputs": HEAVY[name]}
    assert asked(ask, "/v1/chat/completions", heavy) in {"invalid_request_error", OK}
