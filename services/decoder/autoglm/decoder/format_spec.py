"""What the answer to a request has to match, as far as a grammar can enforce it: function calls, if some are required,
else the format that is asked for. Nothing here needs torch: it works for the process that tries formats."""

import json
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from autoglm.common.errors import InvalidRequest
from autoglm.decoder.call_grammar import grammar, keyword_beyond_calls
from autoglm.decoder.closed_objects import closed
from autoglm.decoder.engine.matchers import EmptyGrammar, UnusableGrammar
from autoglm.decoder.engine.request import GrammarSpec
from autoglm.decoder.json_schema import Schema, check_references, enforceable, lenient, unenforced
from autoglm.decoder.tool_functions import Marks, ToolFunction, is_single
from autoglm.v1 import decoder_pb2, generation_pb2

Compile: TypeAlias = Callable[[GrammarSpec], object]  # raises UnusableGrammar for what is not a grammar
TOO_COMPLEX = "this is too complex to be enforced"
# Begin llguidance's messages about what it cannot hold.
_OVER_LIMITS = ("lexer error", "lexer precomputation", "parser error", "Parser Error", "fuel", "panic")
_REGEX_ERROR = re.compile(r"error: (.+)|(lookarounds not supported)")


def has_format(message: decoder_pb2.DecoderServiceGenerateRequest) -> bool:
    """Return whether the answer has to match anything: its grammar can take a second to make."""
    return requires_call(message) or message.sampling.WhichOneof("structured_output") is not None


def format_param(message: decoder_pb2.DecoderServiceGenerateRequest) -> str:
    """Return the field of a request that says what its answer has to match."""
    return "tools" if requires_call(message) else f"sampling.{message.sampling.WhichOneof('structured_output')}"


def format_spec(message: decoder_pb2.DecoderServiceGenerateRequest, marks: Marks, compile_: Compile) -> GrammarSpec:
    """Return what the answer to a request with a format has to match, with `marks` around function calls.

    Raises InvalidRequest, which names the field or the keyword, for what is no grammar, and for a strict schema that
    cannot be enforced in full.
    """
    if requires_call(message):
        return _calls(message, marks, compile_)
    params, param = message.sampling, format_param(message)
    kind = params.WhichOneof("structured_output")
    assert kind is not None
    if kind == "json_schema":
        return _json(params, compile_)
    spec = GrammarSpec(kind, tuple(params.choice.texts) if kind == "choice" else str(getattr(params, kind)), param)
    try:
        compile_(spec)
    except EmptyGrammar:
        raise InvalidRequest("no text matches this", param=param) from None
    except UnusableGrammar as error:
        raise InvalidRequest(_reason(kind, str(error)), param=param) from None
    return spec


def requires_call(message: decoder_pb2.DecoderServiceGenerateRequest) -> bool:
    """Return whether the answer has to call a function."""
    choice = message.tool_choice
    return bool(choice.function) or choice.mode == generation_pb2.TOOL_CHOICE_MODE_REQUIRED


def _reason(kind: str, error: str) -> str:
    """Return what is wrong with a grammar of the client's own, in words about its text alone."""
    if error.startswith(_OVER_LIMITS):
        return TOO_COMPLEX
    if kind == "regex":
        found = _REGEX_ERROR.search(error)
        more = f": {found[1] or 'look-around is not supported'}" if found else ""
        return f"this is not a regular expression in the syntax of Rust's regex crate{more}"
    if kind == "grammar":
        return f"this is not a grammar in llguidance's dialect of Lark: {error.splitlines()[0]}"
    return "these are too many texts to choose from, or too long ones"


def _json(params: generation_pb2.SamplingParams, compile_: Compile) -> GrammarSpec:
    def spec(schema: Schema) -> GrammarSpec:
        return GrammarSpec("json_schema", json.dumps(closed(schema)), "sampling.json_schema")

    try:
        schema = json.loads(params.json_schema)
    except ValueError:
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequest("this is not a JSON object", param="sampling.json_schema")
    strict = params.json_schema_strict
    return spec(enforceable(schema, strict, "sampling.json_schema", lambda each: compile_(spec(each))))


def _calls(message: decoder_pb2.DecoderServiceGenerateRequest, marks: Marks, compile_: Compile) -> GrammarSpec:
    """Return the grammar of the calls that are required. Schemas are tried one by one only if all together fail, with
    and without the keywords that llguidance does not know."""
    name, single = message.tool_choice.function, is_single(message)
    offered = {
        f"tools[{number}].function.parameters": tool
        for number, tool in enumerate(message.tools)
        if name in ("", tool.function.name)
    }
    for param, tool in offered.items():
        _check_function(tool.function, param)

    def spec(functions: Sequence[ToolFunction]) -> GrammarSpec:
        return GrammarSpec("grammar", grammar(functions, single, marks), "tools")

    for whole in (spec([form(tool) for tool in offered.values()]) for form in (ToolFunction.of, _lenient)):
        if _takes(whole, compile_):
            return whole
    kept = spec([_kept(tool.function, param, lambda one: compile_(spec([one]))) for param, tool in offered.items()])
    if not _takes(kept, compile_):
        raise InvalidRequest("the tools are too many, or too complex to enforce together", param="tools")
    return kept


def _takes(spec: GrammarSpec, compile_: Compile) -> bool:
    try:
        compile_(spec)
    except UnusableGrammar:
        return False
    return True


def _lenient(tool: generation_pb2.Tool) -> ToolFunction:
    """Return a function without the keywords that llguidance does not know, unless it is strict."""
    function = tool.function
    if function.strict:
        return ToolFunction.of(tool)
    return ToolFunction.read(function.name, lenient(json.loads(function.parameters or "{}")))


def _kept(function: generation_pb2.Function, param: str, try_: Callable[[ToolFunction], object]) -> ToolFunction:
    """Return a function with what can be enforced of its parameters, which are at `param`."""
    schema = json.loads(function.parameters or "{}")
    kept = enforceable(schema, function.strict, param, lambda each: try_(ToolFunction.read(function.name, each)))
    return ToolFunction.read(function.name, kept)


def _check_function(function: generation_pb2.Function, param: str) -> None:
    """Raise InvalidRequest for parameters that are described by themselves, and for a strict function with a keyword
    that no grammar of calls enforces."""
    parameters = json.loads(function.parameters or "{}")
    check_references(parameters, param)
    if function.strict and (found := keyword_beyond_calls(parameters)):
        path, keyword = found
        raise unenforced(keyword, f"{param}{path}")
