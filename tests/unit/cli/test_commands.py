"""The `autoglm` command as a whole: version, completion, and the same options everywhere."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from autoglm.cli.main import app

AUTOGLM = Path(sys.executable).with_name("autoglm")
COMMANDS = ("serve", "chat", "doctor", "eval", "bench", "bundle", "keys", "train")
COMPLETE = """\
eval "$(autoglm --show-completion)"
COMP_WORDS=(autoglm {words} '') COMP_CWORD={at}
$(complete -p autoglm | sed 's/.*-F \\([^ ]*\\) .*/\\1/') autoglm
echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(("words", "offered"), [("", COMMANDS), ("keys", ("create", "list", "revoke"))])
def test_bash_completes_commands(words: str, offered: tuple[str, ...]) -> None:
    script = COMPLETE.format(words=words, at=1 + len(words.split()))
    environment = os.environ | {"PATH": f"{AUTOGLM.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert tuple(done.stdout.split()) == offered


def test_the_version_is_the_packages() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.stdout, done.exit_code) == (f"autoglm {version('autoglm-mesh')}\n", 0)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("serve", {"--bundle", "--modalities", "--host", "--http-port", "--grpc-port"}),
        ("doctor", {"--bundle", "--modalities", "--host", "--http-port", "--grpc-port", "--json"}),
        ("chat", {"--url", "--api-key"}),
        ("eval", {"--json", "--out", "--seed"}),
        ("bench smoke", {"--url", "--api-key", "--json", "--out"}),
        ("bench engine", {"--bundle", "--json", "--out"}),
        ("bundle check", {"--json"}),
        ("keys list", {"--file", "--json"}),
    ],
)
def test_the_same_thing_has_the_same_name_everywhere(command: str, options: set[str]) -> None:
    found = typer.main.get_command(app)
    for word in command.split():
        assert isinstance(found, TyperGroup)
        found = found.commands[word]
    assert options <= {name for parameter in found.params for name in parameter.opts}


@pytest.mark.parametrize("port", ["0", "65536"])
def test_a_port_that_cannot_be_is_refused_by_its_option(port: str) -> None:
    done = CliRunner().invoke(app, ["serve", "--http-port", port])
    assert done.exit_code == 2
    assert "--http-port" in done.stderr


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        ({"AUTOGLM_CACHE_TTL": "soon"}, "AUTOGLM_CACHE_TTL: Input should be a valid integer"),
        ({"AUTOGLM_REDIS_URL": "localhost"}, "AUTOGLM_REDIS_URL: give an address like redis://localhost:6379/0"),
        ({"AUTOGLM_REDIS_URL": "redis://host:port"}, "AUTOGLM_REDIS_URL: give an address like"),
    ],
)
def test_a_setting_that_the_gateway_refuses_ends_the_start(environment: dict[str, str], fault: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoglm.cli.main", "serve"],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"autoglm serve: {fault}")


def test_a_missing_file_of_keys_comes_with_the_command(tmp_path: Path) -> None:
    for command in (["list"], ["revoke", "12345678"]):
        done = CliRunner().invoke(app, ["keys", *command, "--file", str(tmp_path / "keys.yaml")])
        assert done.exit_code == 1
        assert "create a key with `autoglm keys create`, or name the file with --file" in done.stderr


# As where the package is not installed; None in sys.modules would be found there by other packages that look for it.
WITHOUT = """
import sys
from autoglm.cli.main import app

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
app({arguments})
"""


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("bench engine", "torch", "decoder"),
        ("bench gateway", "uvloop", "serve"),
        ("bundle check bundles", "torch", "serve"),
        ("eval", "jiwer", "train"),
        ("keys list", "yaml", "gateway"),
        ("train nano", "torch", "train"),
    ],
)
def test_a_package_that_is_missing_comes_with_its_extra(command: str, package: str, extra: str) -> None:
    code = WITHOUT.format(package=package, arguments=command.split())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"autoglm {command.split()[0]}")
    assert line.endswith(f": {package} is missing: pip install 'autoglm-mesh[{extra}]'")
