"""Requests that schemathesis makes up from /openapi.json, on the real mesh: no answer is a fault, all are described."""

from ..asking import MODEL
from ..exploring import explore, stream
from ..mesh import Mesh


def test_made_up_requests_find_no_fault(mesh: Mesh) -> None:
    statuses = explore(mesh.http_url, 40)
    for route in ("responses", "embeddings"):
        assert {200, 400} <= statuses[f"POST /v1/{route}"]
    assert 400 in statuses["POST /v1/chat/completions"] & statuses["POST /v1/audio/transcriptions"]


def test_real_streams_are_as_described(mesh: Mesh) -> None:
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "你是谁?"}], "stream": True}
    stream(mesh.http_url, "/v1/chat/completions", body=chat)
    stream(mesh.http_url, "/v1/responses", body={"model": MODEL, "input": "你是谁?", "stream": True})
