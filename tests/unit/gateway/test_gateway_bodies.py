"""Bodies that are no request at all. tests/fuzz makes those with random damage."""

import pytest

from .conftest import Client


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
