"""Bad input over the real mesh: what the client sees, and that no memory or request is left."""

import base64
import itertools
import json
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import grpc
import numpy as np
import psutil
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from autoglm.bench.smoke.workloads import wav
from autoglm.cli.api import audio_bytes_part, image_bytes_part
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, Media
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER

from ..asking import CHAT, MODEL, Asker, describe_decoder
from ..mesh import Mesh
from ..waiting import NET_SECONDS, eventually

MIB = 2**20
IMAGE = "messages[0].content[0].image_url.url"
AUDIO = "messages[0].content[0].input_audio.data"


def png(width: int, height: int, rows: bytes) -> bytes:
    """Return a one-bit grey PNG whose pixels are `rows`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pieces = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def sound(seconds: float) -> bytes:
    """Return a quiet tone as WAV."""
    return wav(0.1 * np.sin(np.arange(int(16000 * seconds)) / 8).astype(np.float32), 16000)


def user(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}]}


HI = user({"type": "text", "text": "hi"})

# A whole PNG of 20 000 × 20 000 pixels: 50 MB of rows, 50 kB of file.
BOMB = png(20_000, 20_000, bytes(2501 * 20_000))

CASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "not an image": (user(image_bytes_part(b"no image at all" * 20)), 415, IMAGE),
    "an image cut short": (user(image_bytes_part(png(64, 64, bytes(9 * 64))[:45])), 415, IMAGE),
    "a bomb": (user(image_bytes_part(BOMB)), 413, IMAGE),
    "a recording as image": (user(image_bytes_part(sound(0.5))), 415, IMAGE),
    "a recording without sound": (user(audio_bytes_part(sound(1.0)[:44])), 415, AUDIO),
    "a recording too short": (user(audio_bytes_part(sound(0.02))), 415, AUDIO),
    "a recording too long": (user(audio_bytes_part(wav(np.zeros(601 * 4000, np.float32), 4000))), 413, AUDIO),
    "no recording": (user(audio_bytes_part(b"ID4 nothing to hear")), 415, AUDIO),
    "no base64": (user({"type": "input_audio", "input_audio": {"data": "?!", "format": "wav"}}), 400, AUDIO),
    "a file of the server": (user({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), 400, IMAGE),
    "no messages": ({"messages": []}, 400, "messages"),
    "messages as text": ({"messages": "hello"}, 400, "messages"),
    "a file as content": (user({"type": "file", "file": {"file_id": "f"}}), 400, "messages[0].content[0].type"),
    "a number as content": ({"messages": [{"role": "user", "content": 7}]}, 400, "messages[0].content"),
    "an unknown role": ({"messages": [{"role": "wizard", "content": "hi"}]}, 400, "messages[0].role"),
    "an unknown part": (user({"type": "video_url"}), 400, "messages[0].content[0].type"),
    "a word as temperature": (HI | {"temperature": "hot"}, 400, "temperature"),
    "a temperature too high": (HI | {"temperature": 3}, 400, "temperature"),
    "half a token": (HI | {"max_tokens": 1.5}, 400, "max_tokens"),
    "a word as stream": (HI | {"stream": "yes"}, 400, "stream"),
    "an unknown model": (HI | {"model": "gpt-9"}, 404, "model"),
    "a bad schema": (HI | {"structured_outputs": {"json": {"type": "odd"}}}, 400, "structured_outputs.json.type"),
    "an expression that is none": (HI | {"structured_outputs": {"regex": "[a"}}, 400, "structured_outputs.regex"),
    "a bias on no token": (HI | {"logit_bias": {"999999": 1}}, 400, "logit_bias"),
    "more than the context": (user({"type": "text", "text": "word " * 20_000}), 400, "messages"),
}


@pytest.fixture(autouse=True)
def unharmed(mesh: Mesh, ask: Asker) -> Iterator[None]:
    """After each test nothing runs, and a good request is answered."""
    yield
    eventually(lambda: ask.running() == 0, "the gateway's running requests come to zero")
    eventually(lambda: describe_decoder(mesh).num_requests_running == 0, "the decoder's do too")
    assert ask("你好")


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_told_by_its_field(ask: Asker, name: str) -> None:
    body, status, param = CASES[name]
    response = ask.http.post(CHAT, json={"model": MODEL, **body})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1, 2]", b"\xff\xfe", b'{"model": 1}'])
def test_a_body_that_is_no_request(ask: Asker, body: bytes) -> None:
    response = ask.http.post(CHAT, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_request_error"


@pytest.mark.parametrize("headers", [{"content-length": str(100 * MIB)}, {}], ids=["told", "untold"])
def test_a_body_of_100_mb_is_refused_and_not_kept(mesh: Mesh, ask: Asker, headers: dict[str, str]) -> None:
    gateway, before = mesh.gateway(), 0
    for _ in range(3):
        response = ask.http.post(CHAT, content=itertools.repeat(b" " * MIB, 100), headers=headers)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
        before = before or memory(gateway)  # after the first, which the allocator may have learned from
    eventually(lambda: memory(gateway) < before + 16 * MIB, "the gateway's memory is what it was")


def test_bombs_and_large_media_leave_no_memory_behind(mesh: Mesh, ask: Asker) -> None:
    gateway, vision = mesh.gateway(), mesh.replica("vision")
    heavy = base64.b64encode(bytes(19 * MIB)).decode()
    parts = (image_bytes_part(BOMB), {"type": "image_url", "image_url": {"url": f"data:;base64,{heavy}"}})
    bodies = [json.dumps({"model": MODEL, **user(part)}) for part in parts]
    before: list[int] = []
    for body in bodies * 5:
        assert ask.http.post(CHAT, content=body).status_code in (413, 415)
        if body is bodies[1]:
            before = before or [memory(gateway), memory(vision)]  # after the first, which allocators learn from
    for process, was in zip((gateway, vision), before, strict=True):
        eventually(partial(holds_less, process, was + 32 * MIB), "memory is what it was")


def holds_less(process: psutil.Process, limit: int) -> bool:
    """Return whether a process holds less than `limit` bytes."""
    return memory(process) < limit


def memory(process: psutil.Process) -> int:
    """Return the bytes that a process really holds."""
    return int(process.memory_info().rss)


def message(*parts: ContentPart) -> ChatMessage:
    return ChatMessage(role=ROLE_USER, parts=parts)


@pytest.mark.parametrize(
    ("chat", "field"),
    [
        (ChatRequest(), "chat.messages"),
        (ChatRequest(messages=[ChatMessage(parts=[ContentPart(text="hi")])]), "chat.messages[0].role"),
        (
            ChatRequest(messages=[message(ContentPart(image=Media(data=b"nothing")))]),
            "chat.messages[0].parts[0].image.data",
        ),
        (
            ChatRequest(messages=[message(ContentPart(audio=Media(data=sound(1.0)[:44])))]),
            "chat.messages[0].parts[0].audio.data",
        ),
        (
            ChatRequest(messages=[message(ContentPart(image=Media(data=BOMB)))]),
            "chat.messages[0].parts[0].image.data",
        ),
    ],
)
def test_bad_input_over_grpc_names_its_field(channel: grpc.Channel, chat: ChatRequest, field: str) -> None:
    stub = ChatServiceStub(channel)
    with pytest.raises(grpc.RpcError) as raised:
        stub.Complete(CompleteRequest(chat=chat), timeout=NET_SECONDS)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(cast(grpc.Call, raised.value))
    assert status is not None
    bad = error_details_pb2.BadRequest()
    assert [detail for detail in status.details if detail.Unpack(bad)]
    assert bad.field_violations[0].field == field
