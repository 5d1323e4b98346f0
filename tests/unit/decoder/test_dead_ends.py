"""Formats that no answer can be completed in: the client's fault, told before the first token where that is known."""

import json
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import pytest

from autoglm.common.bundle import default_bundle
from autoglm.common.errors import InvalidRequest
from autoglm.decoder.engine.grammar import Grammars
from autoglm.decoder.engine.request import GrammarSpec, Request
from autoglm.decoder.formats import Formats
from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.v1.decoder_pb2 import DecoderServiceGenerateRequest
from autoglm.v1.generation_pb2 import TOOL_CHOICE_MODE_REQUIRED, Function, SamplingParams, Tool, ToolChoice

from .engines import CONTEXT, GREEDY, LENGTHS, WIDE, Engines, Outputs, collect, prompts, submit

PATH = default_bundle() / "decoder" / "tokenizer.json"


@pytest.fixture(scope="module")
def formats() -> Formats:
    return Formats(PATH, [2585, 2604], GCMA_LAYOUT.tool_call, lambda: False)


def refusal(formats: Formats, message: DecoderServiceGenerateRequest) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        formats.read(message)
    return caught.value


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (SamplingParams(regex=r"[^\d\D]"), "sampling.regex"),
        (SamplingParams(regex=r"ok [^\w\W]"), "sampling.regex"),
        (SamplingParams(grammar="start: start"), "sampling.grammar"),
        (SamplingParams(grammar="start: one\none: two\ntwo: one"), "sampling.grammar"),
        (SamplingParams(grammar="start: NONE\nNONE: /x/ & /y/"), "sampling.grammar"),
    ],
)
def test_a_format_that_no_text_matches_is_refused(formats: Formats, sampling: SamplingParams, param: str) -> None:
    error = refusal(formats, DecoderServiceGenerateRequest(sampling=sampling))
    assert (error.message, error.param) == ("no text matches this", param)


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (SamplingParams(regex="(y?){400}y{400}"), "sampling.regex"),
        (SamplingParams(regex="((ab){900}){900}"), "sampling.regex"),
        (SamplingParams(grammar='start: "xy"{900000}'), "sampling.grammar"),
        (SamplingParams(grammar="start: /(y?){400}y{400}/"), "sampling.grammar"),
    ],
)
def test_a_format_beyond_the_limits_is_refused(formats: Formats, sampling: SamplingParams, param: str) -> None:
    error = refusal(formats, DecoderServiceGenerateRequest(sampling=sampling))
    assert (error.message, error.param) == ("this is too complex to be enforced", param)


LOOPS: list[tuple[dict[str, Any], str]] = [
    ({"$ref": "#"}, ""),
    ({"properties": {"x": {"$ref": "#/properties/x"}}}, ".properties.x"),
    ({"properties": {"x": {"allOf": [{"$ref": "#/properties/x"}]}}}, ".properties.x"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, ".$defs.a"),
    ({"items": {"$ref": "#/$defs/a~1b"}, "$defs": {"a/b": {"$ref": "#/%24defs/a~1b"}}}, ".$defs.a/b"),
    ({"items": {"$ref": "#/elsewhere/0"}, "elsewhere": [{"$ref": "#/elsewhere/0"}]}, ".items.$ref"),
]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("schema", "at"), LOOPS)
def test_a_schema_that_is_its_own_description_is_refused(
    formats: Formats, schema: dict[str, Any], at: str, strict: bool
) -> None:
    sampling = SamplingParams(json_schema=json.dumps(schema), json_schema_strict=strict)
    error = refusal(formats, DecoderServiceGenerateRequest(sampling=sampling))
    assert "refers to itself" in error.message
    assert error.param == f"sampling.json_schema{at}"


@pytest.mark.parametrize(("schema", "at"), LOOPS)
def test_parameters_that_are_their_own_description_are_refused(
    formats: Formats, schema: dict[str, Any], at: str
) -> None:
    tools = [Tool(function=Function(name="now")), Tool(function=Function(name="f", parameters=json.dumps(schema)))]
    choice = ToolChoice(mode=TOOL_CHOICE_MODE_REQUIRED)
    error = refusal(formats, DecoderServiceGenerateRequest(tools=tools, tool_choice=choice))
    assert error.param == f"tools[1].function.parameters{at}"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
        {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"x": {"$ref": "#"}}}]},
        {"type": "object", "properties": {"$ref": {"type": "string"}, "a": {"const": {"$ref": "#"}}}},
    ],
)
def test_recursive_schemas_are_taken(formats: Formats, schema: dict[str, Any]) -> None:
    message = DecoderServiceGenerateRequest(sampling=SamplingParams(json_schema=json.dumps(schema)))
    spec = formats.read(message)
    assert spec is not None
    assert Grammars(PATH, [2585, 2604]).compiled(spec)


BEYOND = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "b": {"type": "string", "pattern": "^(y?){400}y{400}$"}},
    "required": ["a", "b"],
}


@pytest.mark.parametrize(
    ("sampling", "begins"),
    [
        (SamplingParams(grammar='start: "so" ("a" | "b") rest\nrest: rest'), "so"),
        (SamplingParams(grammar='start: "n" ("1" | "2") /(y?){400}y{400}/'), "n"),
        (SamplingParams(json_schema=json.dumps(BEYOND)), '{"a": '),
    ],
)
def test_a_dead_end_within_an_answer_is_told_by_the_field_and_ends_it_alone(
    engines: Engines,
    composer: Composer,
    expected: list[list[int]],
    sampling: SamplingParams,
    begins: str,
    tmp_path: Any,
) -> None:
    composer.tokenizer.save(str(tmp_path / "tokenizer.json"))
    end = composer.tokenizer.token_to_id("<|user|>")
    assert end is not None
    grammars = Grammars(tmp_path / "tokenizer.json", [end])
    formats = Formats(tmp_path / "tokenizer.json", [end], GCMA_LAYOUT.tool_call, lambda: False)
    spec = formats.read(DecoderServiceGenerateRequest(sampling=sampling))
    engine = engines(WIDE, [end], grammars)
    _, free = submit(engine, prompts(composer)[3], replace(GREEDY, max_tokens=LENGTHS[3]))
    outputs: Outputs = SimpleQueue()
    engine.submit(Request(prompts(composer)[1], replace(GREEDY, max_tokens=200), CONTEXT, grammar=spec), outputs.put)
    tokens, finish = collect(outputs)
    assert composer.tokenizer.decode(tokens).startswith(begins)
    assert isinstance(finish, InvalidRequest)
    assert finish.param == f"sampling.{sampling.WhichOneof('structured_output')}"
    assert collect(free)[0] == expected[3]


def test_the_field_that_asks_is_no_part_of_what_is_asked() -> None:
    """The same grammar for two requests is compiled once."""
    assert GrammarSpec("regex", "a", "sampling.regex") == GrammarSpec("regex", "a")
