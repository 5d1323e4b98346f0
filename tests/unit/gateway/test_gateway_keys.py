"""API keys and tenants: from the settings, and from a file that changes."""

import hmac
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
import yaml
from pydantic import SecretStr

from autoglm.common.errors import AuthenticationFailed
from autoglm.gateway import app
from autoglm.gateway.admission.key_file import digest_of, load
from autoglm.gateway.admission.keys import Keys
from autoglm.gateway.file_watcher import FileError, FileWatcher
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.settings import Settings
from autoglm.v1.model_pb2 import ListModelsRequest
from autoglm.v1.model_pb2_grpc import ModelServiceStub

from ...waiting import eventually_async
from .conftest import Client, FakeMesh, Serve
from .mounts import Mount
from .samples import image_part, png
from .test_gateway_cache import outcomes


def content(**tenants: list[str]) -> bytes:
    """Return a file with the keys of each tenant."""
    entries = [{"name": name, "keys": [digest_of(key) for key in keys]} for name, keys in tenants.items()]
    return yaml.safe_dump({"tenants": entries}).encode()


async def enters(client: Client, key: str | None) -> bool:
    """Return whether both servers let a key in; they must agree."""
    sent = {} if key is None else {"authorization": f"Bearer {key}"}
    status = (await client.http.get("/v1/models", headers=sent)).status_code
    stub = ModelServiceStub(client.channel)
    try:
        await stub.ListModels(ListModelsRequest(), metadata=tuple(sent.items()))
        code = grpc.StatusCode.OK
    except grpc.aio.AioRpcError as error:
        code = error.code()
    assert (status, code) in ((200, grpc.StatusCode.OK), (401, grpc.StatusCode.UNAUTHENTICATED))
    return status == 200


async def chat_with(client: Client, key: str, *parts: Any) -> Any:
    client.http.headers["authorization"] = f"Bearer {key}"
    response = await client.chat(list(parts) or "hi")
    assert response.status_code == 200, response.text
    return response.json()


async def test_keys_of_a_file_and_of_the_settings(serve: Serve, mount: Mount) -> None:
    mount.put(keys=content(acme=["ag-1", "ag-2"], zoo=["ag-3"]))
    client = await serve(api_keys_file=mount.path("keys"), api_keys="k1")
    for key in ("ag-1", "ag-2", "ag-3", "k1"):
        assert await enters(client, key)
    for wrong in ("ag-4", "EMPTY", digest_of("ag-1"), "acme", None):
        assert not await enters(client, wrong)


async def test_a_file_without_keys_lets_nobody_in(serve: Serve, mount: Mount) -> None:
    mount.put(keys=b"")
    client = await serve(api_keys_file=mount.path("keys"))
    assert not await enters(client, "EMPTY")
    assert not await enters(client, None)


async def test_keys_of_a_tenant_share_what_is_cached_and_no_one_else_does(
    serve: Serve, mesh: FakeMesh, mount: Mount
) -> None:
    mount.put(keys=content(acme=["ag-1", "ag-2"], zoo=["ag-3"]))
    client = await serve(api_keys_file=mount.path("keys"), api_keys="acme")  # a key that is called like a tenant
    picture = image_part(png(colour="pink"))
    found = {key: outcomes(await chat_with(client, key, picture)) for key in ("ag-1", "ag-2", "ag-3", "acme")}
    assert found == {"ag-1": ["miss"], "ag-2": ["local"], "ag-3": ["miss"], "acme": ["miss"]}
    salts = [request.cache_salt for request in mesh.decoder.generate.requests]
    assert salts[0] == salts[1]
    assert len(set(salts)) == 3


async def test_a_swapped_file_is_taken_without_a_restart(serve: Serve, mount: Mount) -> None:
    mount.put(keys=content(acme=["ag-old"]))
    client = await serve(api_keys_file=mount.path("keys"))
    assert await enters(client, "ag-old")
    mount.put(keys=content(acme=["ag-new"]))

    async def revoked() -> bool:
        return (await client.http.get("/v1/models", headers={"authorization": "Bearer ag-old"})).status_code == 401

    await eventually_async(revoked, "the key is revoked")
    assert await enters(client, "ag-new")
    assert not await enters(client, "ag-old")


async def test_a_broken_file_changes_nothing_and_says_why(
    serve: Serve, mount: Mount, caplog: pytest.LogCaptureFixture
) -> None:
    mount.put(keys=content(acme=["ag-old"]))
    client = await serve(api_keys_file=mount.path("keys"))
    with caplog.at_level(logging.INFO, "autoglm.gateway.file_watcher"):
        mount.put(keys=b"tenants:\n- name: acme\n  keys: [ag-leaked]\n")
        await eventually_async(reload_is(client, 0.0), "the file is refused")
        assert await enters(client, "ag-old")
        assert not await enters(client, "ag-leaked")
        mount.put(keys=content(acme=["ag-new"]))
        await eventually_async(reload_is(client, 1.0), "the file is read again")
    broken, mended = [record for record in caplog.records if record.name == "autoglm.gateway.file_watcher"]
    assert (broken.levelno, mended.levelno) == (logging.ERROR, logging.INFO)
    assert "tenants.0.keys.0" in broken.message
    assert "ag-leaked" not in broken.message
    assert await enters(client, "ag-new")


def reload_is(client: Client, value: float) -> Callable[[], Any]:
    async def shows() -> bool:
        line = f'autoglm_last_reload_successful{{setting="api_keys_file"}} {value}'
        return line in (await client.http.get("/metrics")).text

    return shows


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tenants: [", "neither YAML nor JSON at line 1"),
        ("ag-leaked: *ag-leaked", "neither YAML nor JSON at line 1"),
        ("\x00", "neither YAML nor JSON"),
        ("tenants: 2026-13-45", "neither YAML nor JSON"),
        ("- ag-leaked", "valid dictionary"),
        ("keys: [ag-leaked]", "keys: Extra inputs"),
        ("tenants: [{name: ag leaked}]", "tenants.0.name: String should match"),
        ("tenants: [{name: a, requests_per_minute: -1}]", "tenants.0.requests_per_minute: Input should be greater"),
        ("tenants: [{name: a}, {name: a}]", "tenant a is listed more than once"),
        (f"tenants: [{{name: a, keys: [{digest_of('k')}]}}, {{name: b, keys: [{digest_of('k')}]}}]", "more than once"),
        (f"tenants: [{{name: a, keys: [{digest_of('EMPTY')}]}}]", "EMPTY is what clients send"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_without_its_content(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(FileError) as caught:
        load(file)
    assert reason in str(caught.value)
    assert str(file) in str(caught.value)
    assert "leaked" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_may_be_json(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"tenants": [{"name": "acme", "keys": [digest_of("k")], "requests_per_minute": 5}]}))
    (tenant,) = load(file).tenants
    assert (tenant.name, tenant.requests_per_minute, tenant.max_concurrent_requests) == ("acme", 5, None)


def test_a_file_that_is_not_there_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOGLM_API_KEYS_FILE", str(tmp_path / "keys.yaml"))
    assert app.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"autoglm gateway: {tmp_path / 'keys.yaml'} cannot be read (No such file or directory)"


def test_every_key_is_compared_whichever_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.yaml"
    file.write_bytes(content(acme=["ag-1", "ag-2", "ag-3"]))
    keys = Keys(Settings(api_keys_file=str(file), api_keys=SecretStr("k1")), FileWatcher(GatewayMetrics()))
    compare = Mock(wraps=hmac.compare_digest)
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in ("ag-1", "ag-3", "k1"):
        keys.tenant([f"Bearer {key}"])
    with pytest.raises(AuthenticationFailed):
        keys.tenant(["Bearer ag-4"])
    assert compare.call_count == 4 * 4


async def test_no_key_reaches_the_log(serve: Serve, mount: Mount, caplog: pytest.LogCaptureFixture) -> None:
    mount.put(keys=content(acme=["ag-known"]))
    with caplog.at_level(logging.DEBUG, "autoglm"):
        client = await serve(api_keys_file=mount.path("keys"), api_keys="ag-listed")
        await chat_with(client, "ag-known")
        for key in ("ag-listed", "ag-unknown"):
            await enters(client, key)
    told = [record.getMessage() for record in caplog.records]
    assert any("/v1/chat/completions 200" in line and "tenant=acme" in line for line in told)
    assert not any("ag-" in line or digest_of("ag-known") in line for line in told)


KEY, OTHER, BASIC = "Bearer k1", "Bearer k2", "Basic azE6"


@pytest.mark.parametrize(
    ("shown", "enters"),
    [
        ([KEY], True),
        ([KEY, KEY], True),
        ([KEY, OTHER], False),
        ([OTHER, KEY], False),
        ([KEY, BASIC], False),
        ([BASIC, KEY], False),
        ([KEY, "Bearer k3"], False),  # both are keys of this server: whose request is it?
        ([KEY, KEY, OTHER], False),
    ],
)
async def test_both_servers_judge_several_keys_alike(serve: Serve, shown: list[str], enters: bool) -> None:
    client = await serve(api_keys="k1,k3")
    headers = [("authorization", value) for value in shown]
    answer = await client.http.get("/v1/models", headers=headers)
    assert answer.status_code == (200 if enters else 401)
    call = ModelServiceStub(client.channel).ListModels(ListModelsRequest(), metadata=tuple(headers))
    if enters:
        assert (await call).models
    else:
        assert await call.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_both_servers_take_the_first_of_several_request_ids(shared: Client) -> None:
    headers = (("x-request-id", "first"), ("x-request-id", "second"))
    answer = await shared.http.get("/v1/models", headers=list(headers))
    call = ModelServiceStub(shared.channel).ListModels(ListModelsRequest(), metadata=headers)
    metadata = dict(await call.initial_metadata())
    assert answer.headers["x-request-id"] == metadata["x-request-id"] == "first"
