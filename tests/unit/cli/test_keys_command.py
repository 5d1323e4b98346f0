"""`autoglm keys`: what it writes, what it shows, and what it never does."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from autoglm.cli.main import app
from autoglm.gateway.admission.key_file import digest_of, load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def keys(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["keys", *map(str, arguments)])


def create(file: Path, tenant: str, *options: str) -> str:
    done = keys("create", tenant, "--file", file, *options)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def listed(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(keys("list", "--file", file, "--json").stdout)
    return found


def test_a_key_is_shown_once_and_kept_as_its_hash(file: Path) -> None:
    done = keys("create", "acme", "--file", file)
    key = done.stdout.strip()
    assert key.startswith("ag-")
    assert len(key) >= 43
    assert key not in done.stderr
    assert key not in file.read_text()
    assert yaml.safe_load(file.read_text()) == {"tenants": [{"name": "acme", "keys": [digest_of(key)]}]}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert create(file, "acme") != key


def test_limits_are_the_tenants(file: Path) -> None:
    create(file, "acme", "--requests-per-minute", "60", "--max-concurrent", "4")
    create(file, "acme", "--requests-per-minute", "90")
    create(file, "zoo")
    limits = [(row["tenant"], row["requests_per_minute"], row["max_concurrent_requests"]) for row in listed(file)]
    assert limits == [("acme", 90, 4), ("acme", 90, 4), ("zoo", None, None)]
    table = keys("list", "--file", file).stdout
    assert all(row["id"] in table for row in listed(file))


def test_a_revoked_key_is_gone_and_the_limits_stay(file: Path) -> None:
    create(file, "acme", "--requests-per-minute", "60")
    create(file, "zoo")
    (first, second) = listed(file)
    assert keys("revoke", first["id"], "--file", file).exit_code == 0
    assert listed(file) == [second]
    create(file, "acme")
    assert listed(file)[0]["requests_per_minute"] == 60


def test_json_stays_json_and_a_link_stays_a_link(tmp_path: Path) -> None:
    link, real = tmp_path / "keys.json", tmp_path / "real.json"
    real.write_text("{}")
    link.symlink_to(real.name)
    key = create(link, "acme")
    assert link.is_symlink()
    assert json.loads(real.read_text())["tenants"][0]["keys"] == [digest_of(key)]
    assert load(link).tenants[0].name == "acme"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys.json", "real.json"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["create", "a b"], "a tenant's name is 1 to 64 letters"),
        (["revoke", "0123456789ab"], "no key has the id 0123456789ab"),
    ],
)
def test_what_cannot_be_done_leaves_the_file_as_it_was(file: Path, command: list[str], told: str) -> None:
    create(file, "acme")
    before = file.read_bytes()
    done = keys(*command, "--file", file)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"autoglm keys {command[0]}: {told}")
    assert file.read_bytes() == before


@pytest.mark.parametrize("command", [["create", "acme"], ["list"], ["revoke", "0123456789ab"]])
def test_a_broken_file_is_told_and_left_alone(file: Path, command: list[str]) -> None:
    file.write_text("tenants: [")
    done = keys(*command, "--file", file)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "is neither YAML nor JSON at line 1" in done.stderr
    assert file.read_text() == "tenants: ["


def test_a_key_that_cannot_be_kept_is_not_shown(tmp_path: Path) -> None:
    done = keys("create", "acme", "--file", tmp_path / "missing" / "keys.yaml")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "cannot be written (No such file or directory)" in done.stderr


def test_the_file_of_the_gateway_is_the_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOGLM_API_KEYS_FILE", str(file))
    assert keys("create", "acme").exit_code == 0
    assert [row["tenant"] for row in listed(file)] == ["acme"]
