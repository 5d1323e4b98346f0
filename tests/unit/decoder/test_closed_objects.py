"""Objects that a JSON Schema leaves open are closed, unless something else in the schema adds to them."""

import json
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher

from autoglm.decoder.closed_objects import closed

N: Any = {"type": "integer"}
OPEN: Any = {"type": "object", "properties": {"n": N}}
LEFT: Any = {"$defs": {"left": OPEN, "right": {"properties": {"m": N}}}}
REFERENCE: Any = {"$ref": "#/$defs/left"}


def takes(schema: Any, instance: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(instance))


@pytest.mark.parametrize(
    ("schema", "more"),
    [
        (OPEN, {"n": 1, "more": 1}),
        ({"properties": {"properties": OPEN}}, {"properties": {"n": 1, "more": 1}}),
        ({"properties": {"list": {"items": OPEN}}}, {"list": [{"n": 1, "more": 1}]}),
        ({"properties": {"pair": {"prefixItems": [OPEN]}}}, {"pair": [{"more": 1}]}),
        ({"properties": {"left": {"anyOf": [REFERENCE, {"type": "null"}]}}, **LEFT}, {"left": {"more": 1}}),
        ({"properties": {"left": {"allOf": [REFERENCE]}}, **LEFT}, {"left": {"more": 1}}),
        ({"type": "object", "additionalProperties": OPEN}, {"any": {"more": 1}}),
        ({"properties": {"n": N}, "patternProperties": {"^x": N}}, {"n": 1, "more": 1}),
    ],
)
def test_an_open_object_is_closed(schema: Any, more: Any) -> None:
    assert takes(schema, more)
    assert not takes(closed(schema), more)
    assert not LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps(closed(schema))))


@pytest.mark.parametrize(
    ("schema", "instance"),
    [
        ({"type": "object"}, {"any": 1}),
        ({"properties": {"n": N}, "additionalProperties": True}, {"n": 1, "more": 1}),
        ({"properties": {"n": N}, "additionalProperties": N}, {"n": 1, "more": 1}),
        ({"properties": {"n": N}, "required": ["n", "m"]}, {"n": 1, "m": 2}),
        ({"properties": {"n": N}, "minProperties": 2}, {"n": 1, "m": 2}),
        ({"properties": {"n": N}, "anyOf": [{"required": ["m"]}]}, {"n": 1, "m": 2}),
        ({"properties": {"n": N}, "oneOf": [{"properties": {"m": N}}]}, {"n": 1, "m": 2}),
        ({"allOf": [REFERENCE, {"$ref": "#/$defs/right"}], **LEFT}, {"n": 1, "m": 2}),
        ({"properties": {"k": N}, **REFERENCE, **LEFT}, {"k": 1, "n": 2}),
        ({"if": {"properties": {"n": N}}, "then": {"required": ["m"]}}, {"n": 1, "m": 2}),
        ({"not": {"properties": {"n": {"type": "string"}}, "required": ["n"]}}, {"n": 1, "m": 2}),
        ({"const": {"properties": {"n": 1}}}, {"properties": {"n": 1}}),
    ],
)
def test_what_others_add_to_stays_open(schema: Any, instance: Any) -> None:
    assert takes(closed(schema), instance)


@pytest.mark.parametrize("schema", [{"properties": 1, "required": 2}, {"properties": {"n": {"items": True}}}])
def test_what_is_odd_is_left_to_others(schema: Any) -> None:
    closed(schema)
