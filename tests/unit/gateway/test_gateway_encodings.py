"""Bodies that clients compress: what is read, what is refused and how, and that a small one stays cheap."""

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from autoglm.gateway.openai.content_encoding import STEP, ContentDecoder

from ...waiting import soon
from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import image_part, png, wav

CHAT = "/v1/chat/completions"
MIB = 1024 * 1024


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def plain(data: bytes) -> bytes:
    return data


def asked(text: str = "你是谁?", **fields: Any) -> bytes:
    content = [{"type": "text", "text": text}, image_part(png(64, 64))]
    return json.dumps({"model": BUNDLE, "messages": [{"role": "user", "content": content}], **fields}).encode()


async def sent(client: Client, body: bytes, *encodings: str, path: str = CHAT) -> httpx.Response:
    headers = [("content-type", "application/json"), *(("content-encoding", each) for each in encodings)]
    return await client.http.post(path, content=body, headers=headers)


@pytest.mark.parametrize(
    ("pack", "encodings"),
    [
        (gzip.compress, ("gzip",)),
        (gzip.compress, ("GZip",)),
        (gzip.compress, ("x-gzip",)),
        (zlib.compress, ("deflate",)),
        (raw_deflate, ("Deflate",)),
        (plain, ("identity",)),
        (plain, ("",)),
        (gzip.compress, ("identity, gzip",)),
        (lambda data: gzip.compress(zlib.compress(data)), ("deflate, gzip",)),
        (lambda data: raw_deflate(gzip.compress(data)), ("gzip", "deflate")),
    ],
)
async def test_a_compressed_body_is_read(
    client: Client, mesh: FakeMesh, pack: Callable[[bytes], bytes], encodings: tuple[str, ...]
) -> None:
    answer = await sent(client, pack(asked()), *encodings)
    assert answer.status_code == 200, answer.text
    (message,) = mesh.decoder.generate.requests[0].messages
    assert message.parts[0].text == "你是谁?"


@pytest.mark.parametrize("level", [0, 1, 9])
async def test_every_route_reads_them(shared: Client, level: int) -> None:
    form = httpx.Request("POST", shared.url, data={"model": BUNDLE}, files={"file": wav(1.0)})
    for path, body, kind in (
        (CHAT, asked("long " * 90_000), "application/json"),
        ("/v1/responses", json.dumps({"model": BUNDLE, "input": "hi"}).encode(), "application/json"),
        ("/v1/embeddings", json.dumps({"model": BUNDLE, "input": ["hi"] * 50}).encode(), "application/json"),
        ("/v1/audio/transcriptions", form.read(), form.headers["content-type"]),
    ):
        headers = {"content-type": kind, "content-encoding": "gzip"}
        answer = await shared.http.post(path, content=gzip.compress(body, level), headers=headers)
        assert answer.status_code == 200, (path, answer.text)


async def test_a_body_in_crumbs_is_read(shared: Client) -> None:
    packed = gzip.compress(asked())

    async def crumbs() -> AsyncIterator[bytes]:
        for i in range(len(packed)):
            yield packed[i : i + 1]

    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    assert (await shared.http.post(CHAT, content=crumbs(), headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "encodings", [("br",), ("zstd",), ("compress",), ("gzip, br",), ("nonsense",), ("gzip, gzip, gzip",), ("gzip",) * 9]
)
async def test_what_cannot_be_read_is_named(shared: Client, encodings: tuple[str, ...]) -> None:
    refused = await sent(shared, gzip.compress(asked()), *encodings)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["param"]) == (415, "unsupported_media", "content-encoding")
    assert refused.headers["accept-encoding"] == "gzip, deflate, identity"
    assert "gzip, deflate" in error["message"]


async def test_other_refusals_name_no_encodings(shared: Client) -> None:
    refused = await shared.chat([image_part(b"no image")])
    assert (refused.status_code, "accept-encoding" in refused.headers) == (415, False)


@pytest.mark.parametrize(
    ("body", "encoding", "why"),
    [
        (asked(), "gzip", "not valid gzip"),
        (asked(), "deflate", "not valid deflate"),
        (gzip.compress(asked(), mtime=0)[:-9], "gzip", "ends too early"),
        (gzip.compress(asked(), mtime=0)[:40], "gzip", "ends too early"),
        (b"", "gzip", "ends too early"),
        (gzip.compress(asked(), mtime=0) + b"more", "gzip", "follows its end"),
        (gzip.compress(asked(), mtime=0) + gzip.compress(b"", mtime=0), "gzip", "follows its end"),
        (gzip.compress(asked(), mtime=0)[:-8] + bytes(8), "gzip", "incorrect"),
        (gzip.compress(asked(), mtime=0), "deflate", "not valid deflate"),
        (zlib.compress(asked()), "gzip", "not valid gzip"),
        (gzip.compress(asked(), mtime=0), "gzip, gzip", "not valid gzip"),
    ],
)
async def test_broken_data_says_so(shared: Client, body: bytes, encoding: str, why: str) -> None:
    refused = await sent(shared, body, encoding)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "content-encoding")
    assert why in error["message"]


async def test_gzip_that_is_not_declared_is_no_json(shared: Client) -> None:
    refused = await sent(shared, gzip.compress(asked()))
    assert (refused.status_code, "not valid JSON" in refused.text) == (400, True)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, gzip"])
async def test_a_bomb_stops_at_the_limit(serve: Serve, encoding: str) -> None:
    client = await serve(max_body_bytes=MIB, max_bytes_in_progress=MIB)
    bomb = bytes(64 * MIB)
    for name in encoding.split(", "):
        bomb = gzip.compress(bomb) if name == "gzip" else zlib.compress(bomb)
    refused = await sent(client, bomb, encoding)
    assert (refused.status_code, refused.json()["error"]["type"]) == (413, "request_too_large")
    assert (await client.chat("hi")).status_code == 200  # its bytes were given back
    metrics = (await client.http.get("/metrics")).text
    assert re.search(r"^autoglm_requests_in_progress 0\.0$", metrics, re.MULTILINE)


async def test_layers_that_hide_a_bomb_stop_too(serve: Serve) -> None:
    """What is in between is nothing but empty blocks, which stand for nothing."""
    client = await serve(max_body_bytes=MIB)
    hollow = b"\x00\x00\x00\xff\xff" * (4 * MIB)
    refused = await sent(client, gzip.compress(hollow), "deflate, gzip")
    assert (refused.status_code, refused.json()["error"]["type"]) == (413, "request_too_large")


async def test_what_is_decompressed_counts_against_the_memory(serve: Serve, mesh: FakeMesh) -> None:
    """While a request holds more than half, neither a plain one of that size nor a compressed one is let in."""
    client = await serve(max_body_bytes=MIB, max_bytes_in_progress=MIB)
    large = b" " * (600 * 1024) + asked()
    mesh.decoder.generate.hold.clear()
    running = asyncio.create_task(sent(client, gzip.compress(large), "gzip"))
    await soon(mesh.decoder.generate.entered.wait())
    for body, encodings in ((large, ()), (gzip.compress(large), ("gzip",))):
        refused = await sent(client, body, *encodings)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_exceeded")
    mesh.decoder.generate.hold.set()
    assert (await running).status_code == 200
    assert (await sent(client, gzip.compress(large), "gzip")).status_code == 200


def test_a_decoder_never_yields_more_than_a_step() -> None:
    decoder = ContentDecoder(["gzip"], 64 * MIB)
    data = bytes(range(256)) * (3 * STEP // 256) + b"end"
    pieces = list(decoder.feed(gzip.compress(data)))
    decoder.finish()
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= STEP
