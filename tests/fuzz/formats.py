"""Formats of answers, valid and not: regular expressions, grammars, choices, JSON Schemas and tools."""

import json
from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

from autoglm.v1.decoder_pb2 import DecoderMessage, DecoderPart, DecoderServiceGenerateRequest
from autoglm.v1.generation_pb2 import (
    ROLE_USER,
    TOOL_CHOICE_MODE_REQUIRED,
    Function,
    SamplingParams,
    TextChoice,
    Tool,
    ToolChoice,
)

from .values import damaged, text

T = TypeVar("T")

DEPTH = 4
DEPTHS = (100, 250, 900, 4000)  # of what is nested, or refers to the next
MAX_TOKENS = 6
_ATOMS = (
    "a", "b+", ".", "\\d", "\\w", "\\s", "[a-z]", "[^a]", "\\p{L}", "é", "😀", "[\\s\\S]", "yes", "</answer>",
    "<think>", "(?i)a", "[0-9]{2}", "你好", "(ab|cd)", "\\.", "(?s:.)", " ", "\"", "\\\\", "",
)  # fmt: skip
_ODD_ATOMS = (
    "[^\\s\\S]", "[]", "[a-]", "[z-a]", "\\p{Nope}", "\\x00", "\\u0041", "\\x{10FFFF}", "(?=a)", "(?!a)", "(?<=a)",
    "\\1", "(?P<n>a)", "\\b", "^", "$", "\\Z", "\\", "{", "}", "(", ")", "|", "*", "\\<", "[[:alpha:]]", "[a&&b]",
    "(?x) a # b", "\\R", "\\K", "\\pN", "[^\\x00-\\x{10FFFF}]", "(?-u:\\xff)", "[\\p{L}--[a-z]]", "(?R)", "\ufdd0",
)  # fmt: skip
_REPEATS = ("", "", "", "?", "*", "+", "{2}", "{1,}", "*?", "{0,3}")
_ODD_REPEATS = (
    "{0}",
    "{0,0}",
    "{3,1}",
    "{1000}",
    "{50000}",
    "{1000000000}",
    "**",
    "{,3}",
    "{99999999999999999999}",
    "{1,1000}",
)
_SIZES = (0, 1, 2, 3, 10, 1000, 10**9, 10**18, 2**63, 10**30)
_ODD_SIZES = (-1, 1.5, 1e308, -(10**18), 0.1, 1e-300, True, None, "1", 5e-324, 3.0)
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null", ["string", "null"])
_FORMATS = ("date", "date-time", "email", "uuid", "ipv4", "ipv6", "uri", "hostname", "regex", "nope")
_REFS = ("#/$defs/a", "#/$defs/b", "#/$defs/c", "#", "#/properties/a")
_ODD_REFS = (
    "#/nowhere",
    "#a",
    "https://x.test/s",
    "",
    "#/%",
    3,
    "#/$defs",
    "#/$defs/a/properties/a",
    "/x",
    "#/$defs/~2",
)
_SIZED = (
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minContains", "maxContains",
)  # fmt: skip
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = (
    "items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedProperties",
    "unevaluatedItems", "additionalItems",
)  # fmt: skip
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
_OTHERS: dict[str, Sequence[Any]] = {
    "enum": ([1, "a", None], ["</answer>"], [{}, []], ["x" * 5000], list(range(3000)), [1e308], ["\x00"]),
    "const": (None, "a", 1e308, {"a": [1]}, "</answer>", 10**30, "\u0000"),
    "required": (["a"], ["zz"], [], ["a", "b"]),
    "uniqueItems": (True, False),
    "$schema": ("http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema", "x"),
    "$id": ("https://x.test/a", "#a"),
    "$anchor": ("a",),
    "$dynamicRef": ("#a", "#"),
    "$recursiveRef": ("#",),
    "x-guidance": ({}, {"lenient": True}, {"nope": 1}, {"whitespace_flexible": True}, {"item_separator": "("}),
    "default": (1,),
    "title": ("t",),
    "contentEncoding": ("base64",),
    "dependentRequired": ({"a": ["b"]},),
}
_RULES = ("start", "x", "y", "Z", "W", "_u")
_TERMS = (
    "x", "y", "Z", "W", '"a"', '"yes"', "/a+/", "/[a-z]{1,9}/", '"a".."z"', "(x | y)", "[x]", "x*", "x+", "x?",
    '"A"i', "/a/i", '"ab"{3}', "%json {}", '%json {"type": "integer"}', '" "', "Z y",
)  # fmt: skip
_ODD_TERMS = (
    "start", '""', '"\\x00"', '"</answer>"', "/[^\\s\\S]/", "/(/", "/a{100000}/", "<think>", "<[5]>", "<[999999]>",
    "<[1-9]>", '"z".."a"', '%json {"$ref": "#"}', "%regex {}", "@grammar", "nope", '"ab"{1000000}', "x ~ 3", "~Z",
    "Z & W", "//", "/x*/", "%lark { start: x }", "/(?=a)b/", '"\\ud800"', "x{0}", "x{3,1}", "x{,5}", "<[^1]>",
    "<[*]>", "/\\p{L}{5000}/", "%json {",
)  # fmt: skip
_HEADS = (
    "%llguidance {}", '%llguidance {"no_forcing": true}', "%llguidance {", "%ignore /\\s+/", "%import common.INT",
    "%declare X",
)  # fmt: skip


def regex(draw: Random, depth: int = DEPTH) -> str:
    """Return an expression, often one that Rust's regex crate does not take."""
    if depth == 0 or draw.random() < 0.3:
        return _mostly(draw, _ATOMS, _ODD_ATOMS) + _mostly(draw, _REPEATS, _ODD_REPEATS)
    inner = draw.choice(("", "", "|")).join(regex(draw, depth - 1) for _ in range(draw.randint(1, 4)))
    return f"({inner}){_mostly(draw, _REPEATS, _ODD_REPEATS)}" if draw.random() < 0.5 else inner


def grammar(draw: Random) -> str:
    """Return a grammar in Lark's syntax whose rules name each other, and rules that are not there."""
    if draw.random() < 0.02:
        return _chain(draw)
    names = _RULES if draw.random() < 0.8 else draw.sample(_RULES, 3)
    lines = [_mostly(draw, ("",), _HEADS), *(_rule(draw, name) for name in names)]
    return "\n".join(lines)


def choices(draw: Random) -> list[str]:
    """Return the texts of a choice."""
    if draw.random() < 0.1:
        return [f"{number}" * draw.choice((1, 50)) for number in range(draw.choice((100, 2000)))]
    return [text(draw) or _mostly(draw, ("a",), ("",)) for _ in range(_mostly(draw, (1, 2, 5), (0,)))]


def schema(draw: Random, depth: int = DEPTH) -> Any:
    """Return a JSON Schema with a few keywords, of which some have values that no schema may have."""
    if depth == 0 or draw.random() < 0.1:
        return draw.choice(
            ({}, True, False, {"type": "string"}, {"type": "integer"}, {"$ref": _mostly(draw, _REFS, _ODD_REFS)})
        )
    made: dict[str, Any] = (
        {"type": _mostly(draw, _TYPES, ("any", [], 3, "", ["string", "string"]))} if draw.random() < 0.6 else {}
    )
    for _ in range(draw.randint(0, 4)):
        name, value = _keyword(draw, depth - 1)
        made[name] = value
    return made


def parameters(draw: Random) -> str:
    """Return a schema as JSON: of a whole answer, or of a function's parameters; rarely damaged, rarely very deep."""
    if draw.random() < 0.03:
        return _nested(draw)
    made = schema(draw)
    if isinstance(made, dict) or draw.random() < 0.9:
        made = dict(made or {}) if isinstance(made, dict) else {}
        made |= {"$defs": {name: schema(draw, 2) for name in "abc"}} if draw.random() < 0.5 else {}
        made |= {"type": "object"} if draw.random() < 0.9 else {}
        made.setdefault("properties", {name: schema(draw, 2) for name in draw.sample("abcd", 2)})
    found = json.dumps(made, ensure_ascii=draw.random() < 0.5)
    return damaged(draw, found.encode()).decode(errors="replace") if draw.random() < 0.05 else found


def tools(draw: Random) -> list[Tool]:
    """Return functions with names of their own."""
    names = [draw.choice(("f", "g_1", "a-b", "F" * 64, "answer")) + str(number) for number in range(draw.randint(1, 3))]
    described = (Function(name=name[-64:], description=text(draw), strict=draw.random() < 0.5) for name in names)
    made = [Tool(function=function) for function in described]
    for tool in made:
        tool.function.parameters = parameters(draw)
    return made


def sampling(draw: Random, max_tokens: int = MAX_TOKENS) -> SamplingParams:
    """Return sampling parameters with a format."""
    params = SamplingParams(max_tokens=max_tokens, temperature=1.0, seed=draw.randrange(2**32))
    match draw.choice(("json_schema", "json_schema", "regex", "grammar", "choice")):
        case "json_schema":
            params.json_schema, params.json_schema_strict = parameters(draw), draw.random() < 0.4
        case "regex":
            params.regex = regex(draw)
        case "grammar":
            params.grammar = grammar(draw)
        case "choice":
            params.choice.CopyFrom(TextChoice(texts=choices(draw)))
    return params


def generate_request(draw: Random) -> DecoderServiceGenerateRequest:
    """Return a request to the decoder whose answer has to match something."""
    parts = [DecoderPart(text="hi" if draw.random() < 0.8 else text(draw))]
    request = DecoderServiceGenerateRequest(messages=[DecoderMessage(role=ROLE_USER, parts=parts)])
    if draw.random() < 0.3:
        request.sampling.max_tokens = MAX_TOKENS
        request.tools.extend(tools(draw))
        request.tool_choice.CopyFrom(_tool_choice(draw, request.tools))
    else:
        request.sampling.CopyFrom(sampling(draw))
    if draw.random() < 0.2:
        request.sampling.max_thinking_tokens = draw.choice((0, 1, 3))
    return request


def _tool_choice(draw: Random, offered: Sequence[Tool]) -> ToolChoice:
    if draw.random() < 0.5:
        return ToolChoice(mode=TOOL_CHOICE_MODE_REQUIRED)
    return ToolChoice(function=draw.choice(offered).function.name)


def _mostly(draw: Random, usual: Sequence[T], odd: Sequence[T]) -> T:
    return draw.choice(odd if draw.random() < 0.05 else usual)


def _rule(draw: Random, name: str) -> str:
    options = (
        " ".join(_mostly(draw, _TERMS, _ODD_TERMS) for _ in range(draw.randrange(4))) for _ in range(draw.randint(1, 3))
    )
    attributes = draw.choice(
        ("",) * 9 + ("[max_tokens=3]", "[lazy]", '[stop="x"]', "[capture]", "[temperature=0.5]", "[nope]")
    )
    return f"{name}{attributes}: " + " | ".join(options)


def _keyword(draw: Random, depth: int) -> tuple[str, Any]:
    match draw.randrange(8):
        case 0:
            return draw.choice(_SIZED), _mostly(draw, _SIZES, _ODD_SIZES)
        case 1:
            return draw.choice(_LISTS), [schema(draw, depth) for _ in range(draw.choice((0, 1, 1, 2, 2, 3)))]
        case 2:
            return draw.choice(_SINGLE), schema(draw, depth)
        case 3:
            return draw.choice(_MAPS), {_name(draw): schema(draw, depth) for _ in range(draw.randrange(4))}
        case 4:
            return "$ref", _mostly(draw, _REFS, _ODD_REFS)
        case 5:
            return "pattern", regex(draw, 2)
        case 6:
            return "format", _mostly(draw, _FORMATS, ("", 3))
    name = draw.choice(list(_OTHERS))
    return name, _mostly(draw, _OTHERS[name], (3, "a", None, []))


def _name(draw: Random) -> str:
    return draw.choice(("a", "b", "c", "", "é", "<", "a.b", "^x", "[", "</answer>", "$ref", text(draw)))


def _nested(draw: Random) -> str:
    """Return schemas in schemas, or a chain of references, so deep that a parser may run out of its stack."""
    depth = draw.choice(DEPTHS)
    if draw.random() < 0.5:
        opening, closing = draw.choice((('{"items":', "}"), ('{"properties":{"a":', "}}"), ('{"anyOf":[', "]}")))
        return opening * depth + "{}" + closing * depth
    links: Sequence[dict[str, Any]] = [{"$ref": f"#/$defs/d{number + 1}"} for number in range(depth)]
    if draw.random() < 0.5:
        links = [{"type": "object", "properties": {"a": link}} for link in links]
    definitions = {f"d{number}": link for number, link in enumerate(links)} | {f"d{depth}": {"type": "string"}}
    return json.dumps({"$ref": "#/$defs/d0", "$defs": definitions})


def _chain(draw: Random) -> str:
    """Return rules, or terminals, of which each is the next."""
    depth, letter = draw.choice(DEPTHS), draw.choice("rR")
    rules = (f"{letter}{number}: {letter}{number + 1}" for number in range(depth))
    return "\n".join((f"start: {letter}0", *rules, f'{letter}{depth}: "a"'))
