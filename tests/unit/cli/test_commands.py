"""The `autoglm` command as a whole: version, completion, and the same options everywhere."""

import ast
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from structure import product_files
from typer.core import TyperGroup
from typer.testing import CliRunner

from autoglm.cli.main import app

ROOT = Path(__file__).resolve().parents[3]
AUTOGLM = Path(sys.executable).with_name("autoglm")
COMMANDS = ("serve", "chat", "doctor", "plan", "eval", "bench", "bundle", "cache", "keys", "train")
COMPLETE = """\
eval "$(autoglm --show-completion)"
COMP_WORDS=(autoglm {words} '') COMP_CWORD={at}
$(complete -p autoglm | sed 's/.*-F \\([^ ]*\\) .*/\\1/') autoglm
echo "${{COMPREPLY[@]}}"
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Give the signals back that `autoglm serve` takes."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


def commands(found: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command below `found` with its words."""
    yield words, found
    if isinstance(found, TyperGroup):
        for name, below in found.commands.items():
            yield from commands(below, *words, name)


def bundle_parameters() -> dict[tuple[str, ...], Any]:
    """Return the parameter of each command that takes a bundle, by the command's words."""
    taken = {
        words: parameter
        for words, command in commands(typer.main.get_command(app))
        for parameter in command.params
        if parameter.name == "bundle"
    }
    assert len(taken) > 5
    return taken


@pytest.mark.parametrize("words", bundle_parameters(), ids=" ".join)
def test_a_folder_without_a_bundle_is_told_with_the_argument_that_the_command_has(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    parameter = bundle_parameters()[words]
    options = list(parameter.opts) if parameter.param_type_name == "option" else []
    variables = [parameter.envvar] if parameter.envvar else []
    needed = ["--media", str(tmp_path)] if words == ("eval", "real") else []
    done = CliRunner().invoke(app, [*words, *options, str(tmp_path), *needed], env={"COLUMNS": "1000"})
    assert done.exit_code == 1
    named = " or ".join([*(options or ["BUNDLE"]), *variables])
    assert f"no bundle at {tmp_path.resolve()}: bundle.json is missing; set {named} to a bundle's folder" in done.output


OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


def test_texts_name_options_that_exist() -> None:
    """What the code below the commands says of options is true of at least one command."""
    have = {option for _, command in commands(typer.main.get_command(app)) for p in command.params for option in p.opts}
    rooms = ("common", "gateway", "services", "bundles", "training")
    said = {
        (str(path), option)
        for path, text in product_files(ROOT).items()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in rooms
        for literal in texts(text)
        for option in OPTION.findall(literal)
    }
    assert said
    assert {(path, option) for path, option in said if option not in have} == set()


def texts(source: str) -> Iterator[str]:
    """Yield the texts of the errors that are raised in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise):
            for below in ast.walk(node):
                if isinstance(below, ast.Constant) and isinstance(below.value, str):
                    yield below.value


@pytest.mark.parametrize("command", [["chat", "hi"], ["keys", "list"], ["bench", "--help"], ["serve", "--http-port=0"]])
def test_a_misspelled_variable_is_told_once_by_every_command(command: list[str]) -> None:
    done = CliRunner().invoke(app, command, env={"AUTOGLM_URLL": "secret", "AUTOGLM_URL": "http://127.0.0.1:1"})
    line = f"autoglm {command[0]}: warning: AUTOGLM_URLL is not a setting; did you mean AUTOGLM_URL?"
    assert done.stderr.splitlines().count(line) == 1
    assert done.output.count("AUTOGLM_URLL") == 1
    assert "secret" not in done.output


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("serve", "AUTOGLM_HTTP_PORT", "tcp://10.0.0.1:8000"),
        ("serve", "AUTOGLM_SERVE_TOKEN", "'token'"),
        ("chat", "AUTOGLM_API_KEY", '"key"'),
    ],
)
def test_a_value_that_cannot_be_meant_ends_the_command_that_reads_it(command: str, name: str, value: str) -> None:
    done = CliRunner().invoke(app, [command], env={name: value})
    assert done.exit_code == 1
    assert done.stderr.startswith(f"autoglm {command}: {name} is ")
    assert value not in done.output


def test_small_letters_reach_the_commands_own_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOGLM_API_KEYS_FILE", "")  # so that it is gone after the test
    done = CliRunner().invoke(app, ["keys", "list"], env={"autoglm_api_keys_file": str(tmp_path / "mine.yaml")})
    assert f"there is no {tmp_path / 'mine.yaml'}" in done.stderr


def test_settings_for_services_elsewhere_have_no_effect_on_a_mesh_of_its_own(tmp_path: Path) -> None:
    given = {
        "AUTOGLM_GRPC_SOCKET": "/other.sock",
        "AUTOGLM_SERVE_ADDRESS": "other:9000",
        "AUTOGLM_SERVE_SSL_CA_CERTS": "ca.pem",
    }
    done = CliRunner().invoke(app, ["serve", "--bundle", str(tmp_path)], env=given)
    for name in given:
        assert f"autoglm serve: warning: {name} has no effect: this command runs its own services and" in done.stderr
    assert "no bundle at" in done.stderr.splitlines()[-1]


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
        ({"AUTOGLM_API_KEYS_FILE": "no.yaml"}, "AUTOGLM_API_KEYS_FILE: no.yaml cannot be read"),
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
        assert "create a key with `autoglm keys create`, or set --file or AUTOGLM_API_KEYS_FILE" in done.stderr


# As where packages are not installed; None in sys.modules would be found there by other packages that look for them.
ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
IMPORT = "from autoglm.cli.main import app\n"


def test_commands_start_with_the_packages_of_the_gateway_alone() -> None:
    others = ["av", "llguidance", "numpy", "ray", "safetensors", "tokenizers", "torch", "transformers"]
    code = f"{ABSENT.format(packages=others)}{IMPORT}app(['keys', 'create', '--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


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
    code = f"{IMPORT}{ABSENT.format(packages=[package])}app({command.split()})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"autoglm {command.split()[0]}")
    assert line.endswith(f": {package} is missing: pip install 'autoglm-mesh[{extra}]'")
