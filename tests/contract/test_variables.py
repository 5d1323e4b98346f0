"""The list of AUTOGLM_ variables has every name that is read anywhere, and no other."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from structure import product_files
from typer.core import TyperGroup

from autoglm.cli.main import app
from autoglm.common.environment import ARGS, COMMANDS, GATEWAY, KNOWN, MESH, PREFIX, SERVICES, TESTS
from autoglm.decoder.settings import DecoderSettings
from autoglm.gateway.settings import Settings
from autoglm.speech.settings import SpeechSettings
from autoglm.vision.settings import VisionSettings

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = re.compile(rf"\b{PREFIX}([A-Z][A-Z_]*[A-Z])\b")
OF_THE_LIST = "common/autoglm/common/environment.py"


def read_by(command: Any) -> Iterator[str]:
    """Yield the variables of a command's options, and of the commands below it."""
    for parameter in command.params:
        yield from [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or ()
    if isinstance(command, TyperGroup):
        for below in command.commands.values():
            yield from read_by(below)


def named_in(*folders: str) -> set[str]:
    """Return the variables that the code in `folders` names."""
    files = {str(path.relative_to(ROOT)): text for path, text in product_files(ROOT).items()}
    return {
        name
        for path, text in files.items()
        if path.startswith(folders) and path != OF_THE_LIST
        for name in VARIABLE.findall(text)
    }


def test_the_gateways_settings_are_listed() -> None:
    assert {name.upper() for name in Settings.model_fields} == GATEWAY


def test_the_variables_of_every_command_are_listed() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for name, command in group.commands.items():
        variables = {variable.removeprefix(PREFIX) for variable in read_by(command)}
        assert variables <= (MESH if name in ("serve", "doctor") else COMMANDS), name


def test_the_variables_of_the_services_are_listed() -> None:
    assert named_in("common/", "services/") <= SERVICES


def test_no_name_is_listed_that_nothing_reads() -> None:
    read = {name.upper() for name in Settings.model_fields} | named_in("")
    assert read == KNOWN - TESTS


def test_keys_of_the_serve_config_are_listed() -> None:
    kinds = (DecoderSettings, SpeechSettings, VisionSettings)
    assert {name.upper() for kind in kinds for name in kind.model_fields} - {"BUNDLE"} == ARGS


def test_documents_name_no_other_variable() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("deploy/*")]
    named = {name for page in pages if page.is_file() for name in VARIABLE.findall(page.read_text(encoding="utf-8"))}
    assert {name for name in named if not name.startswith("TEST_")} - KNOWN == set()
