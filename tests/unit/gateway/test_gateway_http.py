"""Requests as they are on the wire: what clients and probes send that is unusual, and what is no HTTP at all."""

import asyncio
import json
import logging

import httpx
import pytest

from ...waiting import soon
from .conftest import Client, FakeMesh
from .samples import wav

BODY = json.dumps({"model": "", "messages": [{"role": "user", "content": "hi"}]}).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\nUpgrade: h2c\r\n"
WEBSOCKET = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: a\r\n"
LAST = b"connection: close\r\n"


async def exchange(client: Client, *pieces: bytes) -> bytes:
    """Send `pieces`, each once the one before has arrived, and return all that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(client.url.rsplit(":", 1)[1]))
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    try:
        return await soon(reader.read())
    finally:
        writer.close()


@pytest.mark.parametrize("offer", [H2C, H2C.lower(), WEBSOCKET, b"connection: upgrade\r\nupgrade: TLS/1.0, h2c\r\n"])
async def test_an_offer_of_another_protocol_costs_no_body(
    client: Client, mesh: FakeMesh, caplog: pytest.LogCaptureFixture, offer: bytes
) -> None:
    chunked = b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
    with caplog.at_level(logging.WARNING):
        for request in (POST + LENGTH + offer + b"\r\n" + BODY, POST + offer + chunked):
            answers = await exchange(client, request + POST + LENGTH + LAST + b"\r\n" + BODY)
            assert answers.count(b"HTTP/1.1 200 OK") == 2, answers
    assert len(mesh.decoder.generate.requests) == 4
    assert caplog.records == []


@pytest.mark.parametrize("cut", [0, 40, 200])
async def test_a_body_may_contain_what_looks_like_an_offer(shared: Client, cut: int) -> None:
    name = "no\r\nupgrade: h2c\r\n\r\nmodel"
    form = httpx.Request("POST", shared.url, data={"model": name}, files={"file": wav()})
    body = form.read()
    head = "".join(f"{key}: {value}\r\n" for key, value in form.headers.items() if key.startswith("content-"))
    start = b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: localhost\r\n" + head.encode() + LAST + b"\r\n"
    answer = await exchange(shared, start + body[:cut], body[cut:])
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert repr(name) in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


async def test_a_body_waits_for_the_word_to_go_on(shared: Client) -> None:
    head = POST + LENGTH + LAST + b"expect: 100-continue\r\n\r\n"
    answer = await exchange(shared, head, BODY)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent(shared: Client) -> None:
    head = POST + b"content-length: 99999999999\r\n" + LAST + b"expect: 100-continue\r\n\r\n"
    answer = await exchange(shared, head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"type":"request_too_large"' in answer


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        POST + b"content-length: many\r\n\r\n",
        POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\n5\r\nabcdefgh\r\n",
        "GET /v1/models/手机 HTTP/1.1\r\nhost: x\r\n\r\n".encode(),
    ],
)
async def test_what_is_no_http_is_answered_and_closed(
    shared: Client, caplog: pytest.LogCaptureFixture, request_: bytes
) -> None:
    with caplog.at_level(logging.WARNING):
        answer = await exchange(shared, request_)
    assert answer.startswith(b"HTTP/1.1 400 ")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json\r\n" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert caplog.records == []  # a client could fill the log
    counted = 'autoglm_request_errors_total{code="invalid_request_error"}'
    assert counted in (await shared.http.get("/metrics")).text
