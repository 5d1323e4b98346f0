"""The limits that docs/errors.md, docs/openai-api.md and docs/operate.md list are those that the code has."""

import re
from pathlib import Path
from types import ModuleType

import pytest

from autoglm.common import format_sizes as sizes
from autoglm.gateway import limits
from autoglm.gateway.memory_bound import memory_bound
from autoglm.gateway.settings import Settings

DOCS = Path(__file__).resolve().parents[2] / "docs"
NUMBER = re.compile(r"\d+(?: \d{3})*")
MIB = 2**20

# By the first cell of their rows: the numbers of the second, each as a constant and what of it the page writes.
ERRORS: dict[str, tuple[int, ...]] = {
    "values in a JSON body, fields in a gRPC message": (limits.MAX_VALUES,),
    "messages, items of a Responses `input`": (limits.MAX_MESSAGES,),
    "parts and earlier tool calls, of all messages together": (limits.MAX_PARTS,),
    "tools; inputs of embeddings": (limits.MAX_TOOLS, limits.MAX_EMBEDDING_INPUTS),
    "parameters of a tool; a schema; all texts of a choice": (sizes.MAX_SCHEMA_BYTES,),
    "a grammar; a regular expression": (sizes.MAX_GRAMMAR_BYTES, sizes.MAX_REGEX_BYTES),
    "parameters of all tools together": (sizes.MAX_SCHEMA_BYTES,),
    "the id of a call": (limits.MAX_ID_LENGTH,),
    "texts of a choice; token ids of `logit_bias`": (sizes.MAX_CHOICE_TEXTS, limits.MAX_LOGIT_BIASES),
    "`stop`": (limits.MAX_STOPS, limits.MAX_STOP_LENGTH),
    "`metadata`": (limits.MAX_METADATA, limits.MAX_METADATA_KEY, limits.MAX_METADATA_VALUE),
    "`user`, `safety_identifier`, `prompt_cache_key`, `service_tier`": (limits.MAX_LABEL_LENGTH,),
    "fields of a form; a field that is no file": (limits.MAX_FORM_FIELDS, limits.MAX_FORM_FIELD_BYTES // MIB),
}
FORMATS: dict[str, tuple[int, ...]] = {
    "a JSON Schema, and the `parameters` of all tools together": (sizes.MAX_SCHEMA_BYTES, sizes.MAX_SCHEMA_DEPTH),
    "`tools`": (limits.MAX_TOOLS,),
    "`structured_outputs.grammar`": (sizes.MAX_GRAMMAR_BYTES,),
    "`structured_outputs.regex`": (sizes.MAX_REGEX_BYTES,),
    "`structured_outputs.choice`": (sizes.MAX_CHOICE_TEXTS, sizes.MAX_CHOICE_BYTES),
}


def cell(page: str, section: str, row: str, number: int = 2) -> str:
    """Return a cell, by default the second, of the row of a section that begins with `row`."""
    _, _, rest = (DOCS / page).read_text(encoding="utf-8").partition(f"\n## {section}\n")
    (found,) = re.findall(rf"^\| {re.escape(row)} \|.*", rest.partition("\n## ")[0], re.MULTILINE)
    return str(found).split("|")[number].strip()


def numbers(text: str) -> list[int]:
    """Return the numbers of a text, without what it says in brackets of others."""
    return [int(number.replace(" ", "")) for number in NUMBER.findall(re.sub(r"\(.*?\)", "", text))]


@pytest.mark.parametrize("row", ERRORS)
def test_the_table_of_limits_is_true(row: str) -> None:
    assert numbers(cell("errors.md", "Limits", row)) == list(ERRORS[row])


@pytest.mark.parametrize("row", FORMATS)
def test_the_table_of_formats_is_true(row: str) -> None:
    assert numbers(cell("openai-api.md", "Formats", row)) == list(FORMATS[row])


def test_a_schema_has_the_same_depth_in_both_tables() -> None:
    assert numbers(cell("errors.md", "Limits", "levels of a JSON body; of a schema in it"))[1] == sizes.MAX_SCHEMA_DEPTH


def test_the_number_of_choices_is_true() -> None:
    said = (DOCS / "openai-api.md").read_text(encoding="utf-8")
    assert f"- `n` is at most {limits.MAX_CHOICES} " in said


@pytest.mark.parametrize("module", [limits, sizes])
def test_no_limit_is_missing_from_the_tables(module: ModuleType) -> None:
    named = {name for name in vars(module) if name.startswith("MAX_")}
    assert named - {"MAX_FORMAT_BYTES"} <= set(re.findall(r"\bMAX_\w+", Path(__file__).read_text(encoding="utf-8")))


def test_both_modules_name_different_things() -> None:
    """One name, one meaning: what both sides check has its number in `format_sizes` alone."""
    assert not {name for name in vars(limits) if name.startswith("MAX_")} & set(vars(sizes))


BOUND = memory_bound(Settings())
READERS = (
    "the processes that read large requests, more than 3 MiB or JSON of more than 4096 values"
    " ([decision 16](adr/0016-large-requests-are-read-in-processes-that-can-be-ended.md))"
)
MEMORY = {
    "the idle process ([above](#memory-when-idle))": BOUND.idle,
    "bodies in progress and their fetched media": BOUND.in_progress,
    "cached embeddings": BOUND.cached,
    "connections": BOUND.connections,
    READERS: BOUND.readers,
    "together": BOUND.total,
}


@pytest.mark.parametrize("row", MEMORY)
def test_the_table_of_memory_is_what_the_settings_allow(row: str) -> None:
    """The code that makes these figures is that of `autoglm doctor`."""
    assert cell("operate.md", "Memory of the gateway", row, 3).startswith(f"{MEMORY[row] / 1e6:.0f} MB")
