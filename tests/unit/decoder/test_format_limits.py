"""Formats and tools that are too large are refused by their field before anything is done with them."""

import json
from typing import Any

import pytest

from autoglm.common.errors import InvalidRequest
from autoglm.common.format_sizes import (
    MAX_CHOICE_BYTES,
    MAX_CHOICE_TEXTS,
    MAX_GRAMMAR_BYTES,
    MAX_REGEX_BYTES,
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
)
from autoglm.decoder.format_limits import check_sizes
from autoglm.v1.decoder_pb2 import DecoderServiceGenerateRequest
from autoglm.v1.generation_pb2 import Function, SamplingParams, TextChoice, Tool


def nested(depth: int, opens: str = "[", closes: str = "]") -> str:
    """Return a schema in which arrays or objects are `depth` levels deep."""
    return '{"x":' + opens * (depth - 1) + '"y"' + closes * (depth - 1) + "}"


def described(size: int) -> str:
    """Return a schema of `size` bytes."""
    return json.dumps({"description": "x" * (size - len('{"description": ""}'))})


def request(*parameters: str, **sampling: Any) -> DecoderServiceGenerateRequest:
    tools = [Tool(function=Function(name=f"f{n}", parameters=text)) for n, text in enumerate(parameters)]
    return DecoderServiceGenerateRequest(tools=tools, sampling=SamplingParams(**sampling))


DEEP = f"{MAX_SCHEMA_DEPTH} levels"
HALF = described(MAX_SCHEMA_BYTES // 2)
LARGEST = [
    request(regex="a" * MAX_REGEX_BYTES),
    request(grammar="a" * MAX_GRAMMAR_BYTES),
    request(json_schema=described(MAX_SCHEMA_BYTES)),
    request(json_schema=nested(MAX_SCHEMA_DEPTH)),
    request(choice=TextChoice(texts=["a"] * MAX_CHOICE_TEXTS)),
    request(choice=TextChoice(texts=["a" * MAX_CHOICE_BYTES])),
    request(HALF, HALF),
    request("", nested(MAX_SCHEMA_DEPTH)),
    request("no JSON", json_schema="no JSON"),  # is refused elsewhere
]


@pytest.mark.parametrize("message", LARGEST)
def test_what_is_as_large_as_may_be_is_taken(message: DecoderServiceGenerateRequest) -> None:
    check_sizes(message)


@pytest.mark.parametrize(
    ("message", "param", "says"),
    [
        (request(regex="a" * (MAX_REGEX_BYTES + 1)), "sampling.regex", str(MAX_REGEX_BYTES)),
        (request(regex="好" * (MAX_REGEX_BYTES // 2)), "sampling.regex", str(MAX_REGEX_BYTES)),
        (request(grammar="a" * (MAX_GRAMMAR_BYTES + 1)), "sampling.grammar", str(MAX_GRAMMAR_BYTES)),
        (request(json_schema=described(MAX_SCHEMA_BYTES + 1)), "sampling.json_schema", str(MAX_SCHEMA_BYTES)),
        (request(json_schema=nested(MAX_SCHEMA_DEPTH + 1)), "sampling.json_schema", DEEP),
        (
            request(json_schema=nested(MAX_SCHEMA_DEPTH + 1, '{"z":', "}")),
            "sampling.json_schema",
            DEEP,
        ),
        (request(json_schema=nested(100_000)), "sampling.json_schema", DEEP),
        (request(choice=TextChoice(texts=["a"] * (MAX_CHOICE_TEXTS + 1))), "sampling.choice", str(MAX_CHOICE_TEXTS)),
        (request(choice=TextChoice(texts=["a", "b" * MAX_CHOICE_BYTES])), "sampling.choice", str(MAX_CHOICE_BYTES)),
        (request(HALF, HALF, "{}"), "tools", str(MAX_SCHEMA_BYTES)),
        (request("", nested(MAX_SCHEMA_DEPTH + 1)), "tools[1].function.parameters", DEEP),
    ],
)
def test_what_is_larger_is_refused_by_its_field(message: DecoderServiceGenerateRequest, param: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        check_sizes(message)
    assert refused.value.param == param
