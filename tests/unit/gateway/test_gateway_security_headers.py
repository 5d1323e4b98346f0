"""Security headers and CORS."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from autoglm.gateway.settings import Settings

from .conftest import BUNDLE, Client, Serve

HI = {"model": BUNDLE, "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("path", ["/", "/docs", "/v1/models", "/health/ready", "/metrics", "/nowhere"])
async def test_every_answer_has_the_headers_and_pages_a_policy(shared: Client, path: str) -> None:
    answer = await shared.http.get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    page = answer.headers["content-type"].startswith("text/html")
    assert ("content-security-policy" in answer.headers) is page
    assert page is (path in ("/", "/docs"))


@pytest.mark.parametrize("stream", [True, False])
async def test_answers_of_the_model_have_the_headers(shared: Client, stream: bool) -> None:
    answer = await shared.chat("hi", stream=stream)
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


async def test_docs_take_nothing_from_elsewhere(shared: Client) -> None:
    page = await shared.http.get("/docs")
    taken = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(taken) >= 2
    for address in taken:
        assert address.startswith("/")
        assert (await shared.http.get(address)).status_code == 200
    assert "http" not in page.headers["content-security-policy"]


async def test_the_playground_takes_nothing_from_elsewhere_and_is_sent_again_only_when_it_has_changed(
    shared: Client,
) -> None:
    page = await shared.http.get("/")
    taken = re.findall(r'(?:src|href)="(playground/[^"#]+)', page.text)
    assert "://" not in page.text
    assert {Path(name).suffix for name in taken} == {".css", ".js", ".svg"}
    for address in ("", *taken):
        answer = await shared.http.get(f"/{address}")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-cache"
        again = await shared.http.get(f"/{address}", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


async def test_other_origins_may_do_nothing_by_default(shared: Client) -> None:
    origin = {"origin": "https://app.example"}
    asked = await shared.http.options("/v1/chat/completions", headers=origin | PREFLIGHT)
    assert asked.status_code == 403
    answer = await shared.http.post("/v1/chat/completions", json=HI, headers=origin)
    assert answer.status_code == 403
    assert not [name for name in (*asked.headers, *answer.headers) if name.startswith("access-control")]


async def test_origins_that_are_named_may_ask_and_others_may_not(serve: Serve) -> None:
    client = await serve(cors_allow_origins="https://app.example, http://localhost:3000", api_keys="k1")
    for origin, allowed in {
        "https://app.example": True,
        "http://localhost:3000": True,
        "https://b.example": False,
    }.items():
        asked = await client.http.options("/v1/chat/completions", headers={"origin": origin} | PREFLIGHT)
        headers = {"origin": origin, "authorization": "Bearer k1"}
        answer = await client.http.post("/v1/chat/completions", json=HI, headers=headers)
        assert (asked.status_code == 200) is allowed
        for each in (asked, answer):
            assert each.headers.get("access-control-allow-origin") == (origin if allowed else None)
            assert "access-control-allow-credentials" not in each.headers
    refused = await client.http.post("/v1/chat/completions", json=HI, headers={"origin": "https://app.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example"


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://a.example, b"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        Settings(cors_allow_origins=origin)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"origin": "https://evil.example", "access-control-request-method": "POST"}, "origin"),
        ({"origin": "https://app.example", "access-control-request-method": "DELETE"}, "method"),
        ({"origin": "https://evil.example", "access-control-request-method": "PUT"}, "origin, method"),
    ],
)
async def test_a_preflight_that_is_refused_has_the_error_body(serve: Serve, asked: dict[str, str], reason: str) -> None:
    client = await serve(cors_allow_origins="https://app.example")
    answer = await client.http.options("/v1/chat/completions", headers=asked)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (403, "permission_error")
    assert error["message"] == f"a page may not send this request: its {reason} is not allowed"
