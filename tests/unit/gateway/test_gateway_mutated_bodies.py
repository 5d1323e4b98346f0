"""Requests with random damage: each is answered, or refused as the client's own fault."""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import BUNDLE, Client
from .samples import audio_part, image_part, png, wav

HI = {"role": "user", "content": "hi"}
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"pattern": "a"}}}}
SCHEMA = {"name": "n", "schema": {"type": "object", "properties": {"a": {"minimum": 1}}}, "strict": True}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
WHOLE: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi"}, image_part(png()), audio_part(wav())]},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c", "content": "ok"},
            ],
            "tools": [{"type": "function", "function": TOOL}],
            "logit_bias": {"5": 1},
            "stop": ["x"],
            "seed": 3,
            "metadata": {"a": "b"},
            "user": "u",
            "response_format": {"type": "json_schema", "json_schema": SCHEMA},
        },
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "hi"}], "structured_outputs": {"choice": ["a"]}},
    ),
    (
        "/v1/responses",
        {"input": [{"role": "user", "content": "hi"}], "tools": [{"type": "function", **TOOL}], "top_p": 1},
    ),
    ("/v1/embeddings", {"input": ["a", "b"], "dimensions": 2, "encoding_format": "float"}),
    ("/v1/embeddings", {"input": [[1, 2], [3]]}),
]
ODD = [
    "null", "true", "0", "-1", "2147483648", "4294967296", "18446744073709551616", "1e999", "NaN", "1" * 5000, "-0.0",
    '""', '"\\u0000"', '"\\ud800"', '"\\udc00x"', '"\U0001f600"', '"\ufeff"', '"https://media.test:x/"', '"data:,"',
    '"data:;base64,\u00e9"', "[]", "[null]", "{}", '{"": null}', '{"$ref": "#"}', '{"a": 1, "a": 2}', "[" * 2000,
]  # fmt: skip
MARK = "\ue000"


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value inside `value`."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(each, (*at, key))


def damaged(draw: random.Random) -> tuple[str, bytes]:
    """Return a path, and a body for it in which one value is another, and at times a byte too."""
    path, whole = draw.choice(WHOLE)
    body: Any = json.loads(json.dumps({"model": BUNDLE, **whole}))
    *way, last = draw.choice(list(places(body)))
    inner = body
    for key in way:
        inner = inner[key]
    inner[last] = MARK
    data = json.dumps(body, ensure_ascii=False).replace(f'"{MARK}"', draw.choice(ODD)).encode()
    if draw.random() < 0.2:
        cut = draw.randrange(len(data))
        data = data[:cut] + draw.choice([b"\xff", b"\x00", b"\xed\xa0\x80", b'"', b""]) + data[cut + 1 :]
    return path, data


@pytest.mark.parametrize("seed", range(4))
async def test_no_damage_to_a_body_is_told_as_our_fault(shared: Client, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(40):
        path, data = damaged(draw)
        response = await shared.http.post(path, content=data, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 404, 415), (path, data[:2000], response.text)
        if response.status_code != 200:
            error = response.json()["error"]
            assert error["type"] in ("invalid_request_error", "not_found", "unsupported_media"), data[:2000]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xef\xbb\xbf",
        b"null",
        b"1e999",
        b'"x"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 100_000,
        '{"model": "x"}'.encode("utf-16"),
        '{"model": "x"}'.encode("utf-32"),
        b'{"model": "\\ud800"}',
        b'{"model": "a", "model": 3}',
    ],
    ids=lambda data: ascii(data[:20]),
)
async def test_a_body_that_is_no_request_is_refused(shared: Client, path: str, data: bytes) -> None:
    response = await shared.http.post(path, content=data, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
