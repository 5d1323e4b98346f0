"""Requests that schemathesis makes up from /openapi.json, on the real mesh: no answer is a fault, all are described."""

from ..asking import MODEL
from ..exploring import explore, stream
from ..mesh import Mesh

ROUTES = ("chat/completions", "responses", "embeddings", "audio/transcriptions")


def test_made_up_requests_find_no_fault(mesh: Mesh) -> None:
    """Half of the valid requests have to get an answer: what is refused before it reaches the model shows little."""
    statuses = explore(mesh.http_url, 30)
    routes = [statuses[f"POST /v1/{route}"] for route in ROUTES]
    assert all(400 in route.invalid and route.share >= 0.5 for route in routes), routes


def test_real_streams_are_as_described(mesh: Mesh) -> None:
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "你是谁?"}], "stream": True}
    stream(mesh.http_url, "/v1/chat/completions", body=chat)
    stream(mesh.http_url, "/v1/responses", body={"model": MODEL, "input": "你是谁?", "stream": True})
