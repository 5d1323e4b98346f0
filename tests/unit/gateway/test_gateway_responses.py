"""OpenAI's Responses API before the fake services: validation, items, events, failures."""

import base64
import hashlib
import json
from typing import Any

import httpx
import openai
import pytest

from autoglm.common.errors import InvalidRequest, UpstreamUnavailable
from autoglm.v1.generation_pb2 import FINISH_REASON_LENGTH, ROLE_ASSISTANT, ROLE_SYSTEM, ROLE_USER

from .conftest import BUNDLE, Client, FakeMesh
from .samples import png, wav

DATA_URL = "data:image/png;base64," + base64.b64encode(png()).decode()
IMAGE = {"type": "input_image", "image_url": DATA_URL, "detail": "auto"}
SPOKEN = {"data": base64.b64encode(wav()).decode(), "format": "wav"}
AUDIO = {"type": "input_audio", "input_audio": SPOKEN}


async def respond(client: Client, given: Any, **fields: Any) -> httpx.Response:
    return await client.http.post("/v1/responses", json={"model": BUNDLE, "input": given, **fields})


def message(*parts: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": list(parts)}]


def events(body: str) -> list[dict[str, Any]]:
    found = []
    for event in body.split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


async def test_a_whole_response(client: Client, mesh: FakeMesh) -> None:
    fields = {"instructions": "be brief", "metadata": {"step": "1"}, "store": True, "max_output_tokens": 20}
    body = (await respond(client, "hi", reasoning={"effort": "low"}, **fields)).json()
    assert (body["object"], body["status"], body["model"]) == ("response", "completed", BUNDLE)
    assert (body["metadata"], body["store"], body["instructions"]) == ({"step": "1"}, False, "be brief")
    reasoning, message = body["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert message["content"][0]["text"] == "你好, AutoGLM 0"
    assert body["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 13,
    }
    (asked,) = mesh.decoder.generate.requests
    assert [message.role for message in asked.messages] == [ROLE_SYSTEM, ROLE_USER]
    assert (asked.sampling.max_tokens, asked.enable_thinking, asked.return_reasoning) == (20, True, True)


async def test_a_recording_may_be_a_data_url(client: Client, mesh: FakeMesh) -> None:
    url = SPOKEN | {"data": f"data:audio/wav;base64,{SPOKEN['data']}"}
    for given in (AUDIO, AUDIO | {"input_audio": url}):
        assert (await respond(client, message(given))).status_code == 200
    ((plain,), (from_url,)) = (request.messages[0].parts for request in mesh.decoder.generate.requests)
    assert from_url.media.media_sha256 == plain.media.media_sha256 == hashlib.sha256(wav()).digest()


async def test_items_of_every_kind(client: Client, mesh: FakeMesh) -> None:
    earlier = (await respond(client, "hi")).json()["output"]
    text = {"type": "input_text", "text": "and now?"}
    told = {"role": "developer", "content": "be brief"}
    response = await respond(
        client, [told, *earlier, {"type": "message", "role": "user", "content": [IMAGE, AUDIO, text]}]
    )
    assert response.status_code == 200, response.text
    messages = mesh.decoder.generate.requests[-1].messages
    assert [message.role for message in messages] == [ROLE_SYSTEM, ROLE_ASSISTANT, ROLE_USER]
    assert messages[1].parts[0].text == "你好, AutoGLM 0"
    assert [part.WhichOneof("part") for part in messages[2].parts] == ["media", "media", "text"]


@pytest.mark.parametrize(("effort", "thinking"), [("none", False), ("minimal", True), ("high", True), (None, None)])
async def test_effort_switches_thinking(
    client: Client, mesh: FakeMesh, effort: str | None, thinking: bool | None
) -> None:
    await respond(client, "hi", reasoning={"effort": effort})
    asked = mesh.decoder.generate.requests[-1]
    assert (asked.enable_thinking if asked.HasField("enable_thinking") else None) == thinking


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "name": "n", "schema": {"type": "array"}, "strict": True}, {"type": "array"}),
    ],
)
async def test_formats(client: Client, mesh: FakeMesh, wanted: dict[str, Any], schema: Any) -> None:
    body = (await respond(client, "hi", text={"format": wanted})).json()
    assert body["text"]["format"] == wanted
    sampling = mesh.decoder.generate.requests[-1].sampling
    assert (json.loads(sampling.json_schema) if sampling.HasField("json_schema") else None) == schema


async def test_events_come_in_openais_order(client: Client) -> None:
    response = await respond(client, "hi", stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = events(response.text)
    item = ["response.output_item.added", "response.content_part.added"]
    done = ["response.content_part.done", "response.output_item.done"]
    assert [event["type"] for event in found] == [
        "response.created",
        "response.in_progress",
        *item,
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        *done,
        *item,
        *["response.output_text.delta"] * 4,
        "response.output_text.done",
        *done,
        "response.completed",
    ]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    whole = (await respond(client, "hi")).json()
    last = found[-1]["response"]
    assert [item["content"] for item in last["output"]] == [item["content"] for item in whole["output"]]
    assert last["usage"] == whole["usage"]
    assert [event["item"] for event in found if event["type"] == "response.output_item.done"] == last["output"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_that_is_cut_short(client: Client, mesh: FakeMesh, stream: bool) -> None:
    mesh.decoder.finish_reason = FINISH_REASON_LENGTH
    response = await respond(client, "hi", stream=stream, max_output_tokens=1)
    body = events(response.text)[-1]["response"] if stream else response.json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in body["output"]] == ["completed", "incomplete"]


async def test_a_stream_that_fails_says_so_twice(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.error, mesh.decoder.after = UpstreamUnavailable("the engine stopped"), 2
    *_, failed, error = events((await respond(client, "hi", stream=True)).text)
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"] == {
        "code": "server_error",
        "message": "the engine stopped",
        "type": "upstream_unavailable",
        "param": None,
    }
    assert (error["type"], error["code"], error["sequence_number"]) == (
        "error",
        "upstream_unavailable",
        failed["sequence_number"] + 1,
    )
    async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="EMPTY", max_retries=0) as peer:
        stream = await peer.responses.create(model=BUNDLE, input="hi", stream=True)
        with pytest.raises(openai.APIError, match="the engine stopped"):
            [event async for event in stream]


async def test_an_error_before_the_first_event_has_its_status(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.error, mesh.decoder.after = UpstreamUnavailable("the engine stopped"), 0
    mesh.decoder.reasons = False
    response = await respond(client, "hi", stream=True)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "upstream_unavailable")


@pytest.mark.parametrize(
    ("given", "fields", "param"),
    [
        ([], {}, "input"),
        (5, {}, "input"),
        ([5], {}, "input[0]"),
        ([{"type": "telepathy_call", "id": "tp_1"}], {}, "input[0].type"),
        ([{"type": ["message"]}], {}, "input[0].type"),
        ([{"type": "web_search_call", "id": "ws_1"}], {}, "input"),
        (message({"type": "input_file", "file_id": "f"}), {}, "input[0].content[0].type"),
        (message({"type": "input_image", "file_id": "f"}), {}, "input[0].content[0].file_id"),
        (message({"type": "input_image", "file_id": None}), {}, "input[0].content[0].image_url"),
        (message({"type": "input_image", "image_url": "file:///etc/passwd"}), {}, "input[0].content[0].image_url"),
        (message({"type": "input_image", "image_url": "data:image/png;base64,!"}), {}, "input[0].content[0].image_url"),
        (message(AUDIO | {"input_audio": {"data": "!"}}), {}, "input[0].content[0].input_audio.data"),
        (message({"type": "input_text"}), {}, "input[0].content[0].text"),
        ([{"role": "tool", "content": "x"}], {}, "input[0].role"),
        ("hi", {"previous_response_id": "resp_1"}, "previous_response_id"),
        ("hi", {"conversation": {"id": "conv_1"}}, "conversation"),
        ("hi", {"prompt": {"id": "pmpt_1"}}, "prompt"),
        ("hi", {"background": True}, "background"),
        ("hi", {"temperature": 3}, "temperature"),
        ("hi", {"top_p": 2}, "top_p"),
        ("hi", {"max_output_tokens": 0}, "max_output_tokens"),
        ("hi", {"metadata": {"a": 1}}, "metadata.a"),
        ("hi", {"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ("hi", {"reasoning": {"effort": "some"}}, "reasoning.effort"),
        ("hi", {"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ("hi", {"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    ],
)
async def test_bad_requests_name_their_field(shared: Client, given: Any, fields: dict[str, Any], param: str) -> None:
    response = await respond(shared, given, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize("levels", [240, 250, 254, 300])
async def test_a_schema_is_echoed_or_refused(shared: Client, levels: int) -> None:
    schema = json.loads('{"items":' * levels + "{}" + "}" * levels)
    response = await respond(shared, "hi", text={"format": {"type": "json_schema", "name": "n", "schema": schema}})
    if levels == 240:
        assert response.json()["text"]["format"]["schema"] == schema
    else:
        assert (response.status_code, response.json()["error"]["param"]) == (400, "text.format.schema")


async def test_it_passes_the_same_door(shared: Client) -> None:
    assert (await respond(shared, "hi", model="gpt-9")).status_code == 404
    late = await shared.http.post(
        "/v1/responses", json={"model": BUNDLE, "input": "hi"}, headers={"x-request-timeout": "soon"}
    )
    assert (late.status_code, late.json()["error"]["param"]) == (400, "x-request-timeout")


async def test_what_the_decoder_finds_too_long_is_the_input(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.error, mesh.decoder.after = InvalidRequest("too long", param="messages"), 0
    error = (await respond(client, "hi")).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request_error", "input")
