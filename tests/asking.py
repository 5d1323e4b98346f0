"""How tests ask the mesh, and what they can see of it from outside."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import httpx

from autoglm.v1.decoder_pb2 import DecoderServiceDescribeRequest, DecoderServiceDescribeResponse
from autoglm.v1.decoder_pb2_grpc import DecoderServiceStub

from .mesh import Mesh
from .waiting import NET_SECONDS

MODEL = "autoglm-phone-9b"
CHAT = "/v1/chat/completions"
_TAP = re.compile(r'do\(action="Tap", element=\[(\d+),\s*(\d+)\]\)')


@dataclass(frozen=True, slots=True)
class Asker:
    """One message of the user at a time, over HTTP."""

    http: httpx.Client

    def post(self, *parts: Any, **fields: Any) -> httpx.Response:
        """Send `parts` (texts and content parts) as one message."""
        content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0, **fields}
        return self.http.post(CHAT, json=body)

    def __call__(self, *parts: Any, **fields: Any) -> str:
        """Return the answer's content; fails the test unless there is one."""
        response = self.post(*parts, **fields)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    def running(self) -> float:
        """Return the requests that the gateway says are in progress."""
        metrics = self.http.get("/metrics").text
        found = re.search(r"^autoglm_requests_in_progress (\S+)$", metrics, re.MULTILINE)
        assert found is not None
        return float(found[1])


def tap(answer: str) -> tuple[int, int] | None:
    """Return the point that an answer taps."""
    found = _TAP.search(answer)
    return (int(found[1]), int(found[2])) if found else None


def caches(body: Mapping[str, Any]) -> list[str]:
    """Return where the embedding of each medium came from."""
    return [part["cache"] for part in body["autoglm"]["stages"]["media"]]


def describe_decoder(mesh: Mesh) -> DecoderServiceDescribeResponse:
    """Ask the decoder's replica itself how busy it is."""
    with grpc.insecure_channel(mesh.serve_address) as channel:
        stub = DecoderServiceStub(channel)
        return stub.Describe(DecoderServiceDescribeRequest(), metadata=mesh.to("decoder"), timeout=NET_SECONDS)
