"""What `autoglm doctor` finds, each fault made for real."""

import json
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from typer.testing import CliRunner, Result

from autoglm.cli import checks, mesh, private_folder
from autoglm.cli.cache_server import CacheServer
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
    assert "a gateway takes up to 2563 MB of memory" in done.stdout


def test_the_memory_of_a_gateway_follows_its_settings() -> None:
    done = doctor(AUTOGLM_MAX_BYTES_IN_PROGRESS="2000000000", AUTOGLM_MAX_CONNECTIONS="10000")
    assert "a gateway takes up to 4692 MB of memory" in done.stdout


def test_a_taken_port_is_named_with_the_option_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        fault = f"port {port} is taken: stop what uses it, or choose another with --http-port or AUTOGLM_HTTP_PORT"
        assert faults("--http-port", port) == {"HTTP port": fault}
        assert list(faults("--grpc-port", port)) == ["gRPC port"]
        verdict = doctor("--http-port", port).stdout.splitlines()[-1]
    assert verdict == "1 of 12 need attention: HTTP port"


def test_an_address_of_another_machine_is_told_from_a_taken_port() -> None:
    found = faults("--host", "192.0.2.1")
    fault = "192.0.2.1 is not an address of this machine: choose another with --host or AUTOGLM_HOST"
    assert found["HTTP port"] == fault


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[CacheServer]:
    binary = checks.cache_binary()
    assert binary is not None
    cache = CacheServer(binary, tmp_path)
    server = cache.start()
    cache.wait(server)
    yield cache
    server.kill()
    server.wait()


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
        ({"AUTOGLM_SSL_CERTFILE": "cert.pem"}, "AUTOGLM_SSL_CERTFILE, AUTOGLM_SSL_KEYFILE: set both or neither"),
        ({"AUTOGLM_GRPC_PORT": "tcp://10.0.0.1:50051"}, "AUTOGLM_GRPC_PORT is the address that Kubernetes sets"),
        ({"AUTOGLM_API_KEYS": "'k1'"}, "AUTOGLM_API_KEYS is in quotes"),
    ],
)
def test_a_setting_that_the_gateway_would_refuse_is_named(environment: dict[str, str], fault: str) -> None:
    found = faults(**environment)
    assert fault in found["Settings"]
    assert found.keys() <= {"Settings", "Files"}


def warned(*arguments: str, **environment: str) -> dict[str, list[str]]:
    """Return the warnings of a machine that can start, by the name of the look."""
    done = doctor("--json", *arguments, **environment)
    assert done.exit_code == 0, done.stdout
    return {check["name"]: check["warnings"] for check in json.loads(done.stdout)["checks"] if check["warnings"]}


def test_a_misspelled_setting_is_a_warning_and_said_once() -> None:
    line = "AUTOGLM_TENANT_REQUEST_PER_MINUTE is not a setting; did you mean AUTOGLM_TENANT_REQUESTS_PER_MINUTE?"
    assert warned(AUTOGLM_TENANT_REQUEST_PER_MINUTE="7") == {"Settings": [line]}
    done = doctor(AUTOGLM_TENANT_REQUEST_PER_MINUTE="7")
    assert done.output.count("AUTOGLM_TENANT_REQUEST_PER_MINUTE") == 1
    assert done.stdout.splitlines()[-1] == "The mesh can start: autoglm serve; look at Settings first"
    assert warned(AUTOGLM_X_SERVICE_HOST="10.0.0.1", AUTOGLM_X_PORT="tcp://10.0.0.1:80") == {}


@dataclass(frozen=True)
class Files:
    """Files that settings can name, good and bad."""

    folder: Path
    authority: trustme.CA

    @classmethod
    def write(cls, folder: Path) -> "Files":
        """Write them."""
        files = cls(folder, trustme.CA())
        files.authority.cert_pem.write_to_path(folder / "ca")
        files.issue("good", 90)
        files.issue("soon", 3)
        files.issue("old", -1)
        (folder / "keys").write_text("tenants: []")
        (folder / "odd").write_text("tenants: 7")
        return files

    def issue(self, name: str, days: int) -> None:
        """Write a certificate that is valid for so many days, and its key."""
        now = datetime.now(UTC)
        leaf = self.authority.issue_cert("gw", not_before=now - timedelta(30), not_after=now + timedelta(days))
        leaf.cert_chain_pems[0].write_to_path(self.folder / f"{name}.pem")
        leaf.private_key_pem.write_to_path(self.folder / f"{name}.key")

    def named(self, **settings: str) -> dict[str, str]:
        """Return the variables that name files of the folder."""
        return {f"AUTOGLM_{name}": str(self.folder / file) for name, file in settings.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files.write(tmp_path_factory.mktemp("files"))


GOOD = {"SSL_CERTFILE": "good.pem", "SSL_KEYFILE": "good.key", "SSL_CA_CERTS": "ca"}


def test_every_file_that_a_setting_names_is_read(files: Files) -> None:
    services = {f"SERVE_{name}": file for name, file in GOOD.items()}
    named = files.named(**GOOD, **services)
    done = doctor("--json", **named)
    (found,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "Files"]
    assert found["ok"]
    assert set(named) <= set(found["found"].split(", "))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({**GOOD, "SSL_KEYFILE": "gone.key"}, "gone.key cannot be read (No such file or directory)"),
        ({**GOOD, "SSL_KEYFILE": "soon.key"}, "(KEY_VALUES_MISMATCH)"),
        ({**GOOD, "SSL_CERTFILE": "keys"}, "are not a certificate and its key, in PEM"),
        ({**GOOD, "SSL_CA_CERTS": "good.key"}, "good.key contains no certificates in PEM"),
        ({**GOOD, "SSL_CERTFILE": "old.pem", "SSL_KEYFILE": "old.key"}, "old.pem expired on "),
        ({"SERVE_SSL_CA_CERTS": "."}, "cannot be read (Is a directory)"),
        ({"SERVE_SSL_CA_CERTS": "odd"}, "odd contains no certificates in PEM"),
        (
            {"SERVE_SSL_CA_CERTS": "ca", "SERVE_SSL_CERTFILE": "good.pem", "SERVE_SSL_KEYFILE": "old.key"},
            "AUTOGLM_SERVE_SSL_CA_CERTS, AUTOGLM_SERVE_SSL_CERTFILE, AUTOGLM_SERVE_SSL_KEYFILE: ",
        ),
        ({"API_KEYS_FILE": "no.yaml"}, "AUTOGLM_API_KEYS_FILE: "),
        ({"API_KEYS_FILE": "odd"}, "odd: tenants: Input should be a valid list"),
    ],
)
def test_a_file_that_the_gateway_could_not_use_is_named(files: Files, settings: dict[str, str], fault: str) -> None:
    found = faults(**files.named(**settings))
    assert list(found) == ["Files"]
    assert fault in found["Files"]


def test_all_files_that_are_wrong_are_named_at_once(files: Files) -> None:
    found = faults(**files.named(API_KEYS_FILE="gone", **GOOD | {"SSL_KEYFILE": "gone"}), SSL_CERT_FILE="gone")
    assert len(found["Files"].splitlines()) == 3


def test_what_works_now_and_not_for_long_is_a_warning(files: Files) -> None:
    (line,) = warned(**files.named(SSL_CERTFILE="soon.pem", SSL_KEYFILE="soon.key"))["Files"]
    assert "soon.pem expires on" in line
    (line,) = warned(**files.named(API_KEYS_FILE="keys"))["Files"]
    assert line.endswith("keys has no key: every request is refused")


@pytest.mark.parametrize(
    ("written", "meant", "fault"),
    [
        ("max_num_seqs:", "max_num_seq:", "args of decoder: max_num_seq: no such key; did you mean max_num_seqs?"),
        (
            "max_num_seqs: 32",
            "max_num_seqs: 0",
            "args of decoder: max_num_seqs: Input should be greater than or equal to 1",
        ),
        ("name: speech", "name: speach", "has an application 'speach'; this release knows vision, speech, decoder"),
        (
            "max_num_seqs: 32",
            "max_num_seqs: 32\n    deployments: [{name: Decode, num_replicas: 2}]",
            "deployments of decoder: there is no deployment Decode, only Decoder",
        ),
        ("grpc_options:", "grpc_option:", "cannot be used (KeyError: 'grpc_options'): restore it"),
    ],
)
def test_a_serve_config_that_cannot_be_meant_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: str, meant: str, fault: str
) -> None:
    config = tmp_path / "serve.yaml"
    text = mesh.config_path().read_text()
    assert written in text
    config.write_text(text.replace(written, meant, 1))
    monkeypatch.setattr(mesh, "config_path", lambda: config)
    (found,) = faults().values()
    assert found in (f"{config}: {fault}", f"{config} {fault}")


def test_a_bundle_that_the_serve_config_names_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(mesh.config_path().read_text().replace('bundle: ""', f"bundle: {tmp_path}", 1))
    monkeypatch.setattr(mesh, "config_path", lambda: config)
    (found,) = faults().values()
    assert "set args.bundle of vision to a bundle's folder" in found


@pytest.mark.parametrize(("package", "name"), [("torch", "PyTorch"), ("ray", "Ray"), ("redis", "Cache")])
def test_a_package_that_is_missing_comes_with_its_command(
    monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for module in [name for name in sys.modules if name.startswith(("redis.", "autoglm.gateway.redis_address"))]:
        monkeypatch.delitem(sys.modules, module)  # so that it is imported again
    done = doctor(AUTOGLM_REDIS_URL="redis://127.0.0.1:1")
    assert done.exit_code == 1
    line = next(line for line in done.stdout.splitlines() if f" {name} " in line)
    assert f"{package} is missing: pip install 'autoglm-mesh[serve]'" in line


def test_a_temporary_folder_that_others_can_write_to_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as folder:
        monkeypatch.setattr(private_folder, "LONGEST_BASE", len(folder))
        monkeypatch.setattr(tempfile, "tempdir", folder)
        Path(folder).chmod(0o777)
        assert f"other users can replace what is in {folder}" in faults()["Folder"]
