"""Traces and logs of a real mesh: a receiver of OTLP gets one trace per request with every stage, from both doors."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, Media
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.decoder_pb2 import DecoderServiceDescribeRequest
from autoglm.v1.decoder_pb2_grpc import DecoderServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER

from ..asking import MODEL, Asker
from ..mesh import Mesh, running_mesh
from ..otlp import ReceivedSpan, Receiver, receiving
from ..unit.gateway.samples import audio_part, image_part, png, wav
from ..waiting import NET_SECONDS, eventually

SECRET = "what the client says"
DOORS = {"http": "POST /v1/chat/completions", "grpc": "autoglm.v1.ChatService/Complete"}
STAGES = [
    "  autoglm-gateway: cache lookup",
    "    autoglm-gateway: encode image",
    "      autoglm-vision: autoglm.v1.VisionService/Encode",
    "        autoglm-vision: preprocess",
    "        autoglm-vision: queue",
    "        autoglm-vision: forward",
    "  autoglm-gateway: cache lookup",
    "    autoglm-gateway: encode audio",
    "      autoglm-speech: autoglm.v1.SpeechService/Encode",
    "        autoglm-speech: preprocess",
    "        autoglm-speech: queue",
    "        autoglm-speech: forward",
    "  autoglm-gateway: chat autoglm-phone-nano",
    "    autoglm-decoder: autoglm.v1.DecoderService/Generate",
    "      autoglm-decoder: read",
    "      autoglm-decoder: queue",
    "      autoglm-decoder: prefill",
    "      autoglm-decoder: decode",
]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Mesh]:
    """In place of the shared mesh: one that sends its traces here and logs JSON."""
    log = tmp_path_factory.mktemp("mesh") / "serve.log"
    traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with running_mesh(log, AUTOGLM_LOG_ENCODING="JSON", **traces) as running:
        yield running


def send(door: str, mesh: Mesh, http: Asker, trace: str, side: int, **fields: Any) -> None:
    """Ask about an image, that no other test sends, and a recording, with an id and a trace of the client's."""
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "x-request-id": f"id-{trace}"}
    image, recording = png(side, side), wav(0.5 + side / 100)
    if door == "http":
        content = [image_part(image), audio_part(recording), {"type": "text", "text": SECRET}]
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 8}
        http.http.post("/v1/chat/completions", json=body, headers=headers).raise_for_status()
        return
    parts = [ContentPart(image=Media(data=image)), ContentPart(audio=Media(data=recording)), ContentPart(text=SECRET)]
    request = CompleteRequest(chat=ChatRequest(messages=[ChatMessage(role=ROLE_USER, parts=parts)]))
    request.chat.sampling.max_tokens = 8
    with grpc.insecure_channel(mesh.grpc_address) as channel:
        ChatServiceStub(channel).Complete(request, metadata=(*headers.items(),), timeout=NET_SECONDS)


def whole(receiver: Receiver, trace: str, count: int) -> Mapping[str, ReceivedSpan]:
    """Return the spans of a trace, by name, once there are so many."""
    eventually(lambda: len(receiver.of(trace)) >= count, f"{count} spans arrive")
    return {each.name: each for each in receiver.of(trace)}


@pytest.mark.parametrize("door", DOORS)
def test_a_request_is_one_trace_with_every_stage(mesh: Mesh, ask: Asker, receiver: Receiver, door: str) -> None:
    trace, side = ("a" * 32, 40) if door == "http" else ("b" * 32, 41)
    send(door, mesh, ask, trace, side)
    spans = whole(receiver, trace, 1 + len(STAGES))
    assert receiver.tree(trace) == [f"autoglm-gateway: {DOORS[door]}", *STAGES]
    root = spans[DOORS[door]]
    assert root.span.parent_span_id.hex() == "b7ad6b7169203331"
    assert all(root.is_around(each) for each in receiver.of(trace))
    assert {each.status for each in spans.values()} == {"unset"}
    generate, decode = spans["autoglm.v1.DecoderService/Generate"], spans["decode"]
    assert generate.events == ["first token"]
    assert decode.attributes["autoglm.completion_tokens"] == 8
    usage = spans["chat autoglm-phone-nano"].attributes
    assert usage["gen_ai.usage.output_tokens"] == 8
    assert usage["gen_ai.usage.input_tokens"] == spans["prefill"].attributes["autoglm.prompt_tokens"]
    assert SECRET not in "".join(str(each.span) for each in receiver.of(trace))


def test_errors_are_the_status_of_their_spans(ask: Asker, receiver: Receiver) -> None:
    trace = "c" * 32
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    content = [image_part(png(42, 42)[:60] + bytes(30)), {"type": "text", "text": "?"}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    assert ask.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 415
    spans = whole(receiver, trace, 4)
    assert spans[DOORS["http"]].status == "unset"  # the client's mistake
    assert spans["encode image"].status.startswith("error: ")
    kind = spans["autoglm.v1.VisionService/Encode"].attributes["error.type"]
    assert spans["encode image"].status == f"error: {kind}"


def test_a_deadline_that_passes_is_an_error(ask: Asker, receiver: Receiver) -> None:
    trace = "d" * 32
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "x-request-timeout": "0.000001"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "?"}]}
    assert ask.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 504
    assert whole(receiver, trace, 1)[DOORS["http"]].status == "error: deadline_exceeded"


def test_lines_of_the_log_carry_the_ids_of_their_request(mesh: Mesh, ask: Asker, receiver: Receiver) -> None:
    """In the gateway's log and in those of the replicas, whose access log Serve writes."""
    trace = "e" * 32
    send("http", mesh, ask, trace, 43)
    ids = {"request_id": f"id-{trace}", "trace_id": trace}

    def of_gateway() -> list[str]:
        lines = [json.loads(line) for line in mesh.lines()]
        return [each["name"] for each in lines if ids.items() <= each.items()]

    eventually(of_gateway, "the gateway's line is written")
    assert of_gateway() == ["autoglm.gateway.access"]
    for application in ("vision", "speech", "decoder"):
        eventually(partial(traces_of, mesh, application, ids["request_id"]), f"the line of {application} is written")
        assert traces_of(mesh, application, ids["request_id"]) == [trace]


def test_a_replicas_log_has_no_lines_about_polls(mesh: Mesh, ask: Asker) -> None:
    """The gateway polls each service every two seconds; this poll is told from those by its id."""
    with grpc.insecure_channel(mesh.serve_address) as channel:
        for number in range(3):
            metadata = (*mesh.to("decoder"), ("request_id", f"poll-{number}"))
            DecoderServiceStub(channel).Describe(
                DecoderServiceDescribeRequest(), metadata=metadata, timeout=NET_SECONDS
            )
    trace = "f" * 32
    send("http", mesh, ask, trace, 44)
    eventually(lambda: traces_of(mesh, "decoder", f"id-{trace}"), "the line of what came after them is written")
    assert [traces_of(mesh, "decoder", f"poll-{number}") for number in range(3)] == [[], [], []]


def traces_of(mesh: Mesh, application: str, request_id: str) -> list[str]:
    """Return the trace in each line that an application's replica has logged for a request."""
    lines = replica_lines(mesh, application)
    return [each.get("trace_id", "") for each in lines if each.get("request_id") == request_id]


def replica_lines(mesh: Mesh, application: str) -> Iterator[dict[str, Any]]:
    """Yield the lines in the log of an application's replica."""
    said = next(line for line in mesh.lines() if "(logs in " in line)
    folder = Path(json.loads(said)["message"].partition("(logs in ")[2].rstrip(")"))
    for path in (folder / "session_latest/logs/serve").glob(f"replica_{application}_*.log"):
        yield from map(json.loads, path.read_text().splitlines())
