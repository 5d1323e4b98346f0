"""What `autoglm doctor` finds, each fault made for real."""

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from autoglm.cli.cache import CacheServer
from autoglm.cli.isolation import free_ports
from autoglm.cli.main import app
from autoglm.common.bundle import chosen_bundle


def doctor(*arguments: str, **environment: str) -> Result:
    http_port, grpc_port = free_ports(2)
    ports = ("--host", "127.0.0.1", "--http-port", str(http_port), "--grpc-port", str(grpc_port))
    return CliRunner().invoke(app, ["doctor", *ports, *arguments], env={"COLUMNS": "200", **environment})


def faults(*arguments: str, **environment: str) -> dict[str, str]:
    """Return what is wrong, by the name of the look."""
    done = doctor("--json", *arguments, **environment)
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["version"]
    found = {check["name"]: check["found"] for check in report["checks"] if not check["ok"]}
    assert report["ok"] == (not found)
    assert done.exit_code == (1 if found else 0)
    return found


def test_a_healthy_machine_has_nothing_wrong() -> None:
    assert faults() == {}
    done = doctor()
    assert done.exit_code == 0
    assert "The mesh can start: autoglm serve" in done.stdout
    assert "HAProxy version" in done.stdout


def test_a_taken_port_is_named_with_the_option_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        fault = f"port {port} is taken: stop what uses it, or choose another with --http-port or AUTOGLM_HTTP_PORT"
        assert faults("--http-port", port) == {"HTTP port": fault}
        assert list(faults("--grpc-port", port)) == ["gRPC port"]
        verdict = doctor("--http-port", port).stdout.splitlines()[-1]
    assert verdict == "1 of 9 need attention: HTTP port"


def test_an_address_of_another_machine_is_told_from_a_taken_port() -> None:
    found = faults("--host", "192.0.2.1")
    fault = "192.0.2.1 is not an address of this machine: choose another with --host or AUTOGLM_HOST"
    assert found["HTTP port"] == fault


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[CacheServer]:
    cache = CacheServer(tmp_path)
    cache.start()
    assert cache.child is not None
    yield cache
    cache.child.kill()
    cache.child.wait()


def test_a_redis_that_answers_is_well(redis: CacheServer) -> None:
    assert faults(AUTOGLM_REDIS_URL=redis.url) == {}


def test_a_redis_that_is_down_is_named_without_its_password() -> None:
    (port,) = free_ports(1)
    (fault,) = faults(AUTOGLM_REDIS_URL=f"redis://:secret@127.0.0.1:{port}/0").values()
    assert fault.startswith(f"no Redis answers at 127.0.0.1:{port} (ConnectionError): start it")
    assert "secret" not in fault


def test_what_is_no_address_of_a_redis_gets_an_example() -> None:
    for fault in faults(AUTOGLM_REDIS_URL="localhost:6379").values():
        assert fault.startswith("AUTOGLM_REDIS_URL")
        assert "like redis://localhost:6379/0" in fault
    assert "Cache" in faults(AUTOGLM_REDIS_URL="localhost:6379")


def test_a_damaged_file_of_the_bundle_is_named(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(chosen_bundle(), tmp_path / "bundle"))
    with (bundle / "decoder" / "config.json").open("a") as file:
        file.write("\n")
    assert faults("--bundle", str(bundle)) == {
        "Bundle": "decoder/config.json of bundle autoglm-phone-nano is damaged; restore the file"
    }


def test_a_folder_without_a_bundle_is_named_with_its_option(tmp_path: Path) -> None:
    (fault,) = faults("--bundle", str(tmp_path)).values()
    assert str(tmp_path) in fault
    assert "--bundle or AUTOGLM_BUNDLE" in fault


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        ({"AUTOGLM_CACHE_TTL": "soon"}, "AUTOGLM_CACHE_TTL: Input should be a valid integer"),
        ({"AUTOGLM_SSL_CERTFILE": "cert.pem"}, "ssl_certfile, ssl_keyfile: set both or neither"),
        ({"AUTOGLM_SSL_CERTFILE": "no.pem", "AUTOGLM_SSL_KEYFILE": "no.pem"}, "no.pem cannot be read"),
        ({"AUTOGLM_API_KEYS_FILE": "no.yaml"}, "no.yaml cannot be read"),
    ],
)
def test_a_setting_that_the_gateway_would_refuse_is_named(environment: dict[str, str], fault: str) -> None:
    found = faults(**environment)
    assert list(found) == ["Settings"]
    assert fault in found["Settings"]


@pytest.mark.parametrize(("package", "name"), [("torch", "PyTorch"), ("ray", "Ray"), ("redis", "Cache")])
def test_a_package_that_is_missing_comes_with_its_command(
    monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = doctor(AUTOGLM_REDIS_URL="redis://127.0.0.1:1")
    assert done.exit_code == 1
    line = next(line for line in done.stdout.splitlines() if f" {name} " in line)
    assert f"{package} is missing: pip install 'autoglm-mesh[serve]'" in line
