"""What the start says of its settings: names that nothing reads, an API that is open, certificates that expire."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from autoglm.gateway import app
from autoglm.gateway.admission.keys import Keys
from autoglm.gateway.file_watcher import FileWatcher
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.settings import Settings
from autoglm.gateway.tls import Certificate

from ...waiting import soon
from .conftest import FakeMesh
from .mounts import Mount
from .test_gateway_faults import read_until, start_process

OPEN = "no API key is set: the API is open to everyone who can reach"


async def test_misspelled_names_and_an_open_api_are_in_the_log(mesh: FakeMesh) -> None:
    """In a process of its own, as the environment is read there."""
    given = {"HOST": "0.0.0.0", "HTTP_PORT": "0", "GRPC_PORT": " 0 ", "SERVE_ADDRESS": mesh.address, "CACHE_TTL": ""}
    process = await start_process(API_KEY="a-secret", RATE_LIMIT="5", **given)
    try:
        line = await read_until(process, "AUTOGLM_API_KEY ")
        assert "WARNING autoglm.gateway: AUTOGLM_API_KEY is not a setting" in line
        assert "did you mean AUTOGLM_API_KEYS?" in line
        assert "a-secret" not in line
        assert "WARNING" in await read_until(process, "AUTOGLM_RATE_LIMIT is not a setting")
        assert "AUTOGLM_API_KEYS_FILE" in await read_until(process, f"{OPEN} 0.0.0.0")
        await read_until(process, "gRPC services at 0.0.0.0:")
    finally:
        process.terminate()
        await soon(process.wait())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gateway.internal"])
def test_an_api_without_keys_is_told_to_be_open(host: str) -> None:
    (line,) = Settings(host=host).warnings
    assert line.startswith(f"{OPEN} {host};")
    assert "AUTOGLM_HOST=127.0.0.1" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_an_api_of_this_machine_alone_is_not_open(host: str) -> None:
    assert Settings(host=host).warnings == ()


@pytest.mark.parametrize(
    "guard",
    [
        {"api_keys": "k1"},
        {"api_keys_file": "keys.yaml"},
        {"ssl_certfile": "cert", "ssl_keyfile": "key", "ssl_ca_certs": "ca"},
    ],
)
def test_an_api_that_asks_who_comes_is_not_open(guard: Any) -> None:
    assert Settings(**guard).warnings == ()


@pytest.mark.parametrize(
    ("url", "secret", "warned"),
    [
        ("redis://cache:6379/0", "", True),
        ("rediss://:password@cache:6379/0", "", True),
        ("rediss://:password@cache:6379/0", "secret", False),
        ("unix:///run/cache.sock", "", False),
        ("", "", False),
    ],
)
def test_a_redis_on_the_network_needs_a_cache_secret(url: str, secret: str, warned: bool) -> None:
    settings = Settings(api_keys=SecretStr("k1"), redis_url=SecretStr(url), cache_secret=SecretStr(secret))
    assert [line.partition(":")[0] for line in settings.warnings] == ["no cache secret is set"] * warned


def test_tls_alone_leaves_it_open() -> None:
    assert len(Settings(ssl_certfile="cert", ssl_keyfile="key").warnings) == 1


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("HTTP_PORT", "tcp://10.0.0.1:8000", "enableServiceLinks: false"),
        ("GRPC_PORT", "tcp://10.0.0.1:50051", "the Service autoglm-grpc"),
        ("API_KEYS", '"k1"', "AUTOGLM_API_KEYS is in quotes"),
        ("API_KEYS", " , ", "AUTOGLM_API_KEYS: contains no key"),
        ("API_KEYS", "EMPTY", "AUTOGLM_API_KEYS: EMPTY is what clients send"),
        ("HTTP_PORT", "eighty", "AUTOGLM_HTTP_PORT: Input should be a valid integer"),
        ("HOST", "192.0.2.7", "set AUTOGLM_HOST to one of this machine's"),
        ("HOST", "no.such.host.invalid", "set AUTOGLM_HOST to one of this machine's"),
    ],
)
def test_a_value_that_cannot_be_meant_stops_the_start_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(f"AUTOGLM_{name}", value)
    assert app.main() == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("autoglm gateway: ")]
    assert told in line


def test_a_key_file_without_keys_is_told_to_let_nobody_in(mount: Mount, caplog: pytest.LogCaptureFixture) -> None:
    mount.put(keys=b"tenants: [{name: team-a}]")
    given: dict[str, Any] = {"api_keys_file": mount.path("keys")}
    Keys(Settings(**given), FileWatcher(GatewayMetrics()))
    assert "has no key: every request is refused" in caplog.text
    caplog.clear()
    Keys(Settings(**given | {"api_keys": "k1"}), FileWatcher(GatewayMetrics()))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("days", "told"), [(-1, "expired on"), (5, "expires on"), (90, ""), (None, "is not valid before")]
)
def test_the_dates_of_the_certificate_are_looked_at(
    mount: Mount, caplog: pytest.LogCaptureFixture, days: int | None, told: str
) -> None:
    now = datetime.now(UTC)
    begin, end = (now - timedelta(30), now + timedelta(days)) if days else (now + timedelta(1), now + timedelta(90))
    leaf = trustme.CA().issue_cert("localhost", not_before=begin, not_after=end)
    mount.put(cert=leaf.cert_chain_pems[0].bytes(), key=leaf.private_key_pem.bytes())
    settings = Settings(ssl_certfile=mount.path("cert"), ssl_keyfile=mount.path("key"))
    with caplog.at_level(logging.WARNING):
        Certificate(settings, FileWatcher(GatewayMetrics()))
    assert (told in caplog.text) if told else caplog.text == ""
