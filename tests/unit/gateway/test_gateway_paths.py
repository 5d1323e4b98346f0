"""What a request's path, method and proxy may look like, and how the type of an answer says its encoding."""

import asyncio
import http.client
import re
from typing import Any

import openai
import pytest
from pydantic import ValidationError

from autoglm.common.errors import UpstreamUnavailable
from autoglm.gateway.openai import app
from autoglm.gateway.settings import Settings

from ...waiting import NET_SECONDS
from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import wav

CHAT = {"model": BUNDLE, "messages": [{"role": "user", "content": "你是谁?"}]}
FORM: dict[str, Any] = {"data": {"model": BUNDLE}, "files": {"file": wav()}}
GETS = (
    "/", "/docs", "/openapi.json", "/health/live", "/health/ready", "/metrics", "/v1/models", f"/v1/models/{BUNDLE}",
    "/playground/app.js", "/static-offline-docs/swagger-ui.css",
)  # fmt: skip
POSTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"json": CHAT},
    "/v1/responses": {"json": {"model": BUNDLE, "input": "hi"}},
    "/v1/embeddings": {"json": {"model": BUNDLE, "input": "hi"}},
    "/v1/audio/transcriptions": FORM,
}


@pytest.mark.parametrize("path", GETS)
async def test_head_is_get_without_the_body(shared: Client, path: str) -> None:
    whole, head = await shared.http.get(path), await shared.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 0
    if path != "/metrics":  # which counts, so that it changes
        assert head.headers["content-length"] == str(len(whole.content))
    assert {*head.headers} == {*whole.headers}
    assert head.headers["content-type"] == whole.headers["content-type"]


async def test_head_says_what_get_would_say_of_a_failure(serve: Serve, mesh: FakeMesh) -> None:
    client = await serve(api_keys="k1")
    for path in ("/v1/models", f"/v1/models/{BUNDLE}", "/v2/models"):
        whole, head = await client.http.get(path), await client.http.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b"")
        assert head.headers["content-length"] == str(len(whole.content))
        assert head.headers.get("www-authenticate") == whole.headers.get("www-authenticate")


async def test_a_connection_is_kept_after_head(shared: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(shared.url.rsplit(":", 1)[1]), timeout=NET_SECONDS)

    def exchange() -> None:
        for method in ("HEAD", "GET", "HEAD"):
            connection.request(method, "/health/live")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b'{"status":"live"}' if method == "GET" else b"")

    await asyncio.to_thread(exchange)


@pytest.mark.parametrize("path", POSTS)
async def test_a_route_that_takes_a_body_has_no_head(shared: Client, path: str) -> None:
    head = await shared.http.head(path)
    assert (head.status_code, head.headers["allow"], head.content) == (405, "POST", b"")


async def test_a_wrong_method_learns_the_right_ones(shared: Client) -> None:
    for method, path, allowed in (
        ("PUT", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/health/ready", "GET, HEAD"),
        ("POST", "/playground/app.js", "GET, HEAD"),
        ("PATCH", "/", "GET, HEAD"),
    ):
        refused = await shared.http.request(method, path)
        assert (refused.status_code, refused.headers["allow"]) == (405, allowed), path
        assert refused.json()["error"]["type"] == "invalid_request_error"


async def test_the_document_knows_each_route_once(shared: Client) -> None:
    paths = (await shared.http.get("/openapi.json")).json()["paths"]
    assert "/v1/models/{model}" in paths
    assert [path for path in paths if path.endswith("/") or path in ("/models", "/chat/completions")] == []
    assert {method for operations in paths.values() for method in operations} == {"get", "post"}


@pytest.mark.parametrize("path", POSTS)
async def test_every_form_of_a_base_url_leads_to_the_route(shared: Client, path: str) -> None:
    for form in (path, f"{path}/", f"/{path}", f"{path}//", path.replace("/v1/", "/v1//"), path.removeprefix("/v1")):
        answer = await shared.http.post(shared.url + form, **POSTS[path])
        assert (answer.status_code, answer.history) == (200, []), (form, answer.text)


@pytest.mark.parametrize("path", [path for path in GETS if path != "/"])
async def test_a_slash_at_the_end_changes_nothing(shared: Client, path: str) -> None:
    answer = await shared.http.get(f"{path}/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == (await shared.http.get(path)).headers["content-type"]


async def test_the_docs_page_may_run_its_script_under_both_names(shared: Client) -> None:
    policies = [(await shared.http.get(path)).headers["content-security-policy"] for path in ("/docs", "/docs/")]
    assert policies[0] == policies[1]
    assert "script-src 'self' 'unsafe-inline'" in policies[0]


async def test_a_client_whose_base_url_lacks_the_version(shared: Client) -> None:
    for base in (shared.url, f"{shared.url}/", f"{shared.url}//", f"{shared.url}/v1/"):
        peer = openai.AsyncOpenAI(base_url=base, api_key="EMPTY", max_retries=0)
        answer = await peer.chat.completions.create(model=BUNDLE, messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content
        assert BUNDLE in [model.id async for model in peer.models.list()]
        assert (await peer.models.retrieve(BUNDLE)).id == BUNDLE


async def test_what_is_no_route_stays_none(shared: Client) -> None:
    for path in ("/v1", "/v2/chat/completions", "/chat", "/v1/chat/", "/v1/v1/models", "/health", "/playground/"):
        answer = await shared.http.post(shared.url + path) if "chat" in path else await shared.http.get(path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found"), path


async def test_every_text_says_that_it_is_utf_8(client: Client, mesh: FakeMesh) -> None:
    answers = [await client.http.get(path) for path in (*GETS, "/playground/style.css")]
    streamed = {**CHAT, "stream": True}
    answers += [
        await client.http.post("/v1/chat/completions", json=streamed),
        await client.http.post("/v1/responses", json={"model": BUNDLE, "input": "你是谁?", "stream": True}),
    ]
    for form in ({"stream": "true"}, *({"response_format": kind} for kind in ("text", "srt", "vtt"))):
        sent = {**FORM, "data": {**FORM["data"], **form}}
        answers.append(await client.http.post("/v1/audio/transcriptions", **sent))
    mesh.decoder.generate.error, mesh.decoder.after = UpstreamUnavailable("断了"), 2
    failed = await client.http.post("/v1/chat/completions", json=streamed)
    assert "event: error" in failed.text
    for answer in (*answers, failed):
        kind = answer.headers["content-type"]
        assert answer.status_code == 200
        if not kind.startswith(("application/json", "image/")):
            assert re.search("charset=utf-8$", kind, re.IGNORECASE), (answer.url, kind)
        answer.content.decode("utf-8")


async def test_json_says_nothing_of_an_encoding(shared: Client) -> None:
    for answer in (await shared.http.post("/v1/chat/completions", json=CHAT), await shared.http.get("/nowhere")):
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("trusted", "seen"),
    [
        ("127.0.0.1", ("198.51.100.7", "https")),
        ("10.0.0.0/8,127.0.0.0/8", ("198.51.100.7", "https")),
        ("*", ("198.51.100.7", "https")),
        ("10.0.0.0/8", ("127.0.0.1", "http")),
        ("", ("127.0.0.1", "http")),
    ],
)
async def test_only_a_proxy_that_is_trusted_is_believed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, trusted: str, seen: tuple[str, str]
) -> None:
    scopes = list[Any]()

    class Watch(app.RequestScope):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            scopes.append(scope)
            await super().__call__(scope, receive, send)

    monkeypatch.setattr(app, "RequestScope", Watch)
    client = await serve(forwarded_allow_ips=trusted)
    await client.http.get("/health/live", headers={"x-forwarded-for": "198.51.100.7", "x-forwarded-proto": "https"})
    assert (scopes[0]["client"][0], scopes[0]["scheme"]) == seen


@pytest.mark.parametrize("wrong", ["proxy.example", "10.0.0.1/8", "*,10.0.0.1", "10.0.0.1:80", "10.0.0.0/40"])
def test_a_proxy_that_could_never_match_is_refused_at_start(wrong: str) -> None:
    with pytest.raises(ValidationError, match="forwarded_allow_ips"):
        Settings(forwarded_allow_ips=wrong)
