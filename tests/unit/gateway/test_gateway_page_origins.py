"""Pages in a browser before a server without keys: what they send decides whether it is their own server."""

import json
from typing import Any

import httpx
import pytest

from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import wav

HI = json.dumps({"model": BUNDLE, "messages": [{"role": "user", "content": "hi"}]}).encode()
CHAT = "/v1/chat/completions"
NAMED = "https://app.example"


async def post(client: Client, *, content_type: str = "application/json", **headers: str) -> httpx.Response:
    return await client.http.post(CHAT, content=HI, headers={"content-type": content_type, **headers})


def refusal(answer: httpx.Response) -> tuple[Any, ...]:
    error = answer.json()["error"]
    assert "AUTOGLM_" in error["message"] or answer.status_code == 415
    return answer.status_code, error["type"], error["param"]


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://127.0.0.1:1",  # another server on this machine
        "http://localhost",
        "null",  # a file, or a frame in a sandbox
        "",
        "chrome-extension://abcdefgh",
        "http://127.0.0.1.evil.example",
        "http://[::1",
        "http://127.0.0.1:99999999",
        "http://" + "a" * 5000,
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
async def test_pages_of_other_origins_reach_nothing(
    client: Client, mesh: FakeMesh, origin: str, content_type: str
) -> None:
    answer = await post(client, content_type=content_type, origin=origin)
    assert refusal(answer) == (403, "permission_error", "origin")
    assert answer.headers["x-request-id"]
    for path in ("/v1/models", "/metrics", "/nowhere"):
        assert (await client.http.get(path, headers={"origin": origin})).status_code == 403
    assert mesh.calls == 0
    assert 'request_errors_total{code="permission_error"} 4.0' in (await client.http.get("/metrics")).text


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://localhost:8000", "localhost:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://phone", "phone"),
        ("https://phone", "phone"),  # behind a proxy that speaks TLS
        ("https://phone", "phone:443"),
        ("https://phone:8443", "PHONE:8443"),
    ],
)
async def test_pages_of_this_server_may_use_it(shared: Client, origin: str, host: str) -> None:
    assert (await post(shared, origin=origin, host=host)).status_code == 200
    headers, file = {"origin": origin, "host": host}, {"file": ("a.wav", wav())}
    answer = await shared.http.post("/v1/audio/transcriptions", headers=headers, data={"model": BUNDLE}, files=file)
    assert answer.status_code == 200


@pytest.mark.parametrize("host", ["phone:8001", "phones:8000", "phone.evil.example:8000", "phone"])
async def test_another_port_or_name_is_another_origin(shared: Client, host: str) -> None:
    answer = await post(shared, origin="http://phone:8000", host=host)
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "content_type", ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "", "json"]
)
async def test_pages_send_json(shared: Client, content_type: str) -> None:
    own = {"origin": shared.url, "host": shared.url.removeprefix("http://")}
    answer = await post(shared, content_type=content_type, **own)
    assert refusal(answer) == (415, "unsupported_media", "content-type")
    assert (await post(shared, content_type=content_type)).status_code == 200  # curl -d says no better
    for json_type in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"):
        assert (await post(shared, content_type=json_type, **own)).status_code == 200


@pytest.mark.parametrize("host", ["evil.example:8000", "127.0.0.1.nip.example", "localhost.example", "a.internal.evil"])
async def test_a_name_bound_to_loopback_leads_nowhere(shared: Client, host: str) -> None:
    for headers in ({"host": host}, {"host": host, "origin": f"http://{host}"}):
        assert refusal(await post(shared, **headers)) == (403, "permission_error", "host")
        assert (await shared.http.get("/v1/models", headers=headers)).status_code == 403


@pytest.mark.parametrize(
    "host",
    ["localhost:8000", "gateway", "a.localhost", "host.docker.internal:8000", "127.0.0.2", "[::1]", "localhost."],
)
async def test_names_that_nobody_can_register_are_of_this_machine(shared: Client, host: str) -> None:
    assert (await post(shared, host=host)).status_code == 200


async def test_a_server_for_the_network_answers_to_any_name(serve: Serve) -> None:
    client = await serve(host="0.0.0.0")
    assert (await post(client, host="mesh.example", origin="https://mesh.example")).status_code == 200
    assert (await post(client, host="mesh.example", origin="https://evil.example")).status_code == 403


async def test_origins_that_are_named_may_use_it(serve: Serve) -> None:
    client = await serve(cors_allow_origins=NAMED)
    for headers in ({"origin": NAMED}, {"host": "app.example"}, {"host": "app.example", "origin": NAMED}):
        assert (await post(client, **headers)).status_code == 200
    assert (await post(client, origin="https://app.example.evil")).status_code == 403
    everyone = await serve(cors_allow_origins="*")
    for headers in ({"origin": "null"}, {"host": "mesh.example"}, {"origin": NAMED}):
        assert (await post(everyone, **headers)).status_code == 200


async def test_with_keys_the_key_alone_decides(serve: Serve) -> None:
    client = await serve(api_keys="k1")
    headers = {"origin": "https://evil.example", "host": "mesh.example"}
    assert (await post(client, **headers)).status_code == 401
    assert (await post(client, authorization="Bearer k1", **headers)).status_code == 200
