"""Schemas that a grammar cannot enforce in full: best effort by default, refused by name when strict."""

import json
from functools import cache
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from autoglm.common.bundle import default_bundle
from autoglm.common.errors import InvalidRequest
from autoglm.decoder.engine.grammar import Grammars
from autoglm.decoder.engine.matchers import JSON_STYLE
from autoglm.decoder.formats import Formats
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.v1.decoder_pb2 import DecoderServiceGenerateRequest
from autoglm.v1.generation_pb2 import (
    TOOL_CHOICE_MODE_AUTO,
    TOOL_CHOICE_MODE_REQUIRED,
    Function,
    SamplingParams,
    Tool,
    ToolChoice,
)

MARKS = GCMA_LAYOUT.tool_call
PATH = default_bundle() / "decoder" / "tokenizer.json"
TOKENIZER = LLTokenizer(PATH.read_text(encoding="utf-8"))


@cache
def grammars() -> Grammars:
    """What the decoder compiles with."""
    return Grammars(PATH, [2585, 2604])


@pytest.fixture(scope="module")
def formats() -> Formats:
    return Formats(PATH, [2585, 2604], MARKS, lambda: False)


def of(schema: Any, **more: Any) -> dict[str, Any]:
    """Return the schema of an object with a required property `x`."""
    return {"type": "object", "properties": {"x": schema}, "required": ["x"], **more}


def answer(schema: dict[str, Any], strict: bool = False) -> DecoderServiceGenerateRequest:
    sampling = SamplingParams(json_schema=json.dumps(schema), json_schema_strict=strict)
    return DecoderServiceGenerateRequest(sampling=sampling)


def call(schema: dict[str, Any], strict: bool = False) -> DecoderServiceGenerateRequest:
    tools = [
        Tool(function=Function(name="now")),
        Tool(function=Function(name="f", parameters=json.dumps(schema), strict=strict)),
    ]
    return DecoderServiceGenerateRequest(tools=tools, tool_choice=ToolChoice(mode=TOOL_CHOICE_MODE_REQUIRED))


def allows(formats: Formats, message: DecoderServiceGenerateRequest, text: str) -> bool:
    """Return whether an answer to `message` may be `text`."""
    spec = formats.read(message)
    assert spec is not None
    assert isinstance(spec.given, str)
    assert grammars().compiled(spec)
    if spec.kind == "json_schema":
        source = LLMatcher.grammar_from_json_schema(spec.given, overrides=JSON_STYLE)
    else:
        source = LLMatcher.grammar_from_lark(spec.given)
    matcher, tokens = LLMatcher(TOKENIZER, source, log_level=0), TOKENIZER.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def wrote(value: str) -> str:
    return f"<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"


NOTES = {"type": "array", "items": {"type": "string", "format": "path"}, "maxItems": 1}
BEYOND = [  # a schema, a value that has to be allowed, one that must not be, and the keyword in the way
    (NOTES, '["a b"]', "[1]", ".properties.x.items.format"),
    ({"type": ["integer", "null"], "not": {"const": 3}}, "4", '"4"', ".properties.x.not"),
    ({"type": "array", "items": {"const": 1}, "uniqueItems": True}, "[1, 1]", '["1"]', ".properties.x.uniqueItems"),
    ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]}, '"b"', "5", ".properties.x.oneOf"),
    ({"anyOf": [{"const": 1}, {"type": "string", "pattern": "(?!0)"}]}, '"x"', "5", ".properties.x.anyOf[1].pattern"),
    ({"type": ["string", "null"], "pattern": r"\bword\b"}, '"any"', "5", ".properties.x.pattern"),
    ({"$ref": "https://example.com/schemas/a.json#/b"}, "[1]", "no", ".properties.x.$ref"),
    ({"$ref": "#/$defs/Absent"}, '{"a": 1}', "no", ".properties.x.$ref"),
    ({"type": ["integer", "null"], "if": {"minimum": 2}, "then": {"maximum": 9}}, "12", '"a"', ".properties.x.if"),
    ({"type": "object", "patternProperties": {"^(?=a)": {}}}, "{}", "[]", ".properties.x.patternProperties"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "fits", "misfits", "keyword"), BEYOND)
def test_what_cannot_be_enforced_is_left_out_alone(
    formats: Formats, schema: Any, fits: str, misfits: str, keyword: str
) -> None:
    for text, allowed in ((fits, True), (misfits, False)):
        assert allows(formats, answer(of(schema)), f'{{"x": {text}}}') is allowed
        assert allows(formats, call(of(schema)), wrote(text)) is allowed


@pytest.mark.parametrize(("schema", "fits", "misfits", "keyword"), BEYOND)
def test_a_strict_schema_is_refused_with_its_keyword(
    formats: Formats, schema: Any, fits: str, misfits: str, keyword: str
) -> None:
    for message, root in (
        (answer(of(schema), strict=True), "sampling.json_schema"),
        (call(of(schema), strict=True), "tools[1].function.parameters"),
    ):
        with pytest.raises(InvalidRequest, match="cannot be enforced") as refused:
            formats.read(message)
        assert refused.value.param == root + keyword
        name = keyword.rpartition(".")[2]
        assert refused.value.message.startswith(f"{name} ")
        assert "Unimplemented" not in refused.value.message


def test_a_schema_that_nothing_satisfies_still_says_what_is_answered(formats: Formats) -> None:
    """Its types and names are kept, and in the end any JSON is."""
    impossible = of({"type": "integer", "minimum": 5, "maximum": 1})
    assert allows(formats, answer(impossible), '{"x": 3}')
    assert not allows(formats, answer(impossible), '{"x": "3"}')
    assert allows(formats, answer({"type": "array", "minItems": 3, "maxItems": 1}), "[1]")
    assert not allows(formats, answer({"type": "array", "minItems": 3, "maxItems": 1}), "{}")
    with pytest.raises(InvalidRequest, match="no value can satisfy it") as refused:
        formats.read(answer(impossible, strict=True))
    assert refused.value.param == "sampling.json_schema"


def test_several_faults_are_left_out_together(formats: Formats) -> None:
    schema = of({"type": ["integer", "null"], "format": "odd"}, propertyNames={"maxLength": 3})
    schema["properties"]["y"] = {"type": ["string", "null"], "pattern": "(?<=a)b"}
    schema["properties"]["z"] = {"$ref": "other.json"}
    schema["$schema"] = "https://example.com/dialect"
    assert allows(formats, answer(schema), '{"x": 1, "y": "free", "z": [2]}')
    assert not allows(formats, answer(schema), '{"x": "1"}')
    assert not allows(formats, answer(schema), '{"x": 1, "y": 2}')


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        (of({"type": "string", "format": "date"}), ".properties.x.format"),
        (of({"type": "string", "anyOf": [{"maxLength": 2}]}), ".properties.x.anyOf"),
        (of({"$ref": "#/$defs/D"}, **{"$defs": {"D": {"type": "string", "format": "uri"}}}), ".$defs.D.format"),
        (of({}, oneOf=[{"required": ["x"]}]), ".oneOf"),
        (of({}, minProperties=2), ".minProperties"),
        ({"type": "object", "properties": {"a<b": {}}}, ".properties.a<b"),
    ],
)
def test_what_the_form_of_calls_cannot_hold_is_refused_when_strict(
    formats: Formats, schema: dict[str, Any], keyword: str
) -> None:
    assert formats.read(call(schema)) is not None
    with pytest.raises(InvalidRequest) as refused:
        formats.read(call(schema, strict=True))
    assert refused.value.param == f"tools[1].function.parameters{keyword}"
    other = call(schema, strict=True)
    other.tool_choice.function = "now"
    assert formats.read(other) is not None, "only what may be called counts"


@pytest.mark.parametrize(
    ("schema", "fits", "misfits"),
    [
        ({"type": "object", "required": ["x"]}, wrote("[1]"), "<tool_call>f\n</tool_call>"),
        ({"$ref": "#/$defs/A", "$defs": {"A": of({"type": "integer"})}}, wrote("1"), wrote("a")),
        (of(True), wrote('"any"'), wrote("any")),
        (of({"type": "string", "maxLength": 2.0}), wrote("ab"), wrote("abc")),
        (of({"type": "string", "enum": ["a", 5]}), wrote("a"), wrote("5")),
        (of({"type": "string", "minLength": 3, "maxLength": 1}), wrote("free"), wrote("a</arg_value>")),
        (of({"type": "string", "pattern": "(?=a)b/"}), wrote("free"), wrote("a</arg_value>")),
        (of({"type": "integer"}) | {"type": ["object", "null"]}, wrote("1"), wrote("a")),
    ],
)
def test_calls_follow_unusual_schemas(formats: Formats, schema: dict[str, Any], fits: str, misfits: str) -> None:
    assert allows(formats, call(schema), fits)
    assert not allows(formats, call(schema), misfits)


def test_a_free_choice_needs_no_grammar(formats: Formats) -> None:
    message = call(of({"$ref": "https://example.com/a"}), strict=True)
    message.tool_choice.mode = TOOL_CHOICE_MODE_AUTO
    assert formats.read(message) is None


@pytest.mark.parametrize(
    ("sampling", "param", "says"),
    [
        (SamplingParams(json_schema="[1"), "sampling.json_schema", "not a JSON object"),
        (SamplingParams(json_schema="true"), "sampling.json_schema", "not a JSON object"),
        (SamplingParams(regex="[a"), "sampling.regex", "unclosed character class"),
        (SamplingParams(regex="(?=a)b"), "sampling.regex", "look-around"),
        (SamplingParams(regex=r"\bword"), "sampling.regex", "look-around is not supported"),
        (SamplingParams(grammar="start: b"), "sampling.grammar", 'unknown name: "b"'),
        (SamplingParams(grammar='root ::= "a"'), "sampling.grammar", "1(7)"),
        (SamplingParams(grammar=""), "sampling.grammar", "Empty grammar"),
    ],
)
def test_what_is_no_grammar_is_said_in_words_about_its_text(
    formats: Formats, sampling: SamplingParams, param: str, says: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        formats.read(DecoderServiceGenerateRequest(sampling=sampling))
    assert refused.value.param == param
    assert says in refused.value.message
    assert "\n" not in refused.value.message
