"""Bytes that are no request: every way in says so in its own form, and none of them is told as the mesh's fault."""

import random
from collections.abc import Iterator

import grpc
import pytest

from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, Media
from autoglm.v1.generation_pb2 import ROLE_USER, SamplingParams

from ..asking import Asker
from ..faults.attacks.bodies import mutations
from ..faults.attacks.sending import OK, connected, grpc_outcome, http_outcome
from ..mesh import Mesh
from ..waiting import NET_SECONDS, eventually

METHODS = (
    "ChatService/Complete",
    "ChatService/StreamComplete",
    "EmbeddingService/Embed",
    "ModelService/ListModels",
    "TranscriptionService/Transcribe",
)
TYPED = {OK, "invalid_request_error", "not_found", "request_too_large", "unsupported_media", "media_unknown"}
GOOD = CompleteRequest(
    chat=ChatRequest(
        messages=[
            ChatMessage(role=ROLE_USER, parts=[ContentPart(text="hi"), ContentPart(image=Media(url="data:,a"))]),
        ],
        sampling=SamplingParams(max_tokens=2, temperature=0.5, stop=["a"], regex="[ab]"),
    )
).SerializeToString()


@pytest.fixture(autouse=True)
def unharmed(mesh: Mesh, ask: Asker) -> Iterator[None]:
    """The processes are the same after each test, and nothing runs any more."""
    before = mesh.gateway().pid, mesh.replica("decoder").pid
    yield
    eventually(lambda: ask.running() == 0, "the gateway's running requests come to zero")
    assert ask.post("hi", max_tokens=2).status_code == 200
    assert (mesh.gateway().pid, mesh.replica("decoder").pid) == before


def outcomes(channel: grpc.Channel, method: str, messages: list[bytes]) -> set[str]:
    """Send each of `messages`, and return everything that is learned."""
    call = channel.unary_stream(f"/autoglm.v1.{method}", bytes, bytes)
    seen = set[str]()
    for message in messages:
        try:
            list(call(message, timeout=NET_SECONDS))
            seen.add(OK)
        except grpc.RpcError as error:
            seen.add(grpc_outcome(error))
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_changed_messages_are_typed_errors(channel: grpc.Channel, method: str) -> None:
    changed = mutations(GOOD)
    assert outcomes(channel, method, [next(changed) for _ in range(300)]) <= TYPED


@pytest.mark.parametrize("method", METHODS)
def test_random_bytes_are_typed_errors(channel: grpc.Channel, method: str) -> None:
    drawn = random.Random(1)
    messages = [drawn.randbytes(2**size) for size in range(16) for _ in range(5)]
    assert outcomes(channel, method, messages) <= TYPED


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/audio/transcriptions"]
)
def test_random_bodies_are_typed_errors(ask: Asker, path: str) -> None:
    drawn = random.Random(2)
    kinds = ("application/json", "multipart/form-data; boundary=b", "text/plain", "")
    for size, kind in [(2**size, kind) for size in range(14) for kind in kinds]:
        response = ask.http.post(f"/v1/{path}", content=drawn.randbytes(size), headers={"content-type": kind})
        assert http_outcome(response) in TYPED


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n12",
        b"GET /\x00 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"\r\n" * 5000 + b"?",
    ],
)
def test_what_is_not_http_is_a_typed_error(mesh: Mesh, data: bytes) -> None:
    with connected(("127.0.0.1", mesh.http_port)) as line:
        line.sendall(data)
        answer = b""
        while piece := line.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 400 " in head.splitlines()[0]
    assert b"application/json" in head.lower()
    assert b'"invalid_request_error"' in body
