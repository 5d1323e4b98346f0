"""What the answer to a request has to match, as far as a grammar can enforce it: function calls, if some are required,
else the format that is asked for."""

import json
import re
from collections.abc import Callable, Sequence

from autoglm.common.errors import InvalidRequest
from autoglm.decoder.closed_objects import closed
from autoglm.decoder.engine.grammar import EmptyGrammar, Grammars, UnusableGrammar
from autoglm.decoder.engine.request import GrammarSpec
from autoglm.decoder.json_schema import Schema, check_references, enforceable, lenient, unenforced
from autoglm.decoder.tools import Marks, ToolFunction, grammar, is_single, keyword_beyond_calls
from autoglm.v1 import decoder_pb2, generation_pb2

_OVER_LIMITS = ("lexer error", "parser error")  # begin llguidance's messages about what it cannot hold
_REGEX_ERROR = re.compile(r"error: (.+)|(lookarounds not supported)")


def has_format(message: decoder_pb2.DecoderServiceGenerateRequest) -> bool:
    """Return whether the answer has to match anything: its grammar can take a second to make."""
    return _requires_call(message) or message.sampling.WhichOneof("structured_output") is not None


def read_format(
    message: decoder_pb2.DecoderServiceGenerateRequest, grammars: Grammars, marks: Marks
) -> GrammarSpec | None:
    """Return what the answer has to match, with `marks` around function calls; None for any answer.

    Raises InvalidRequest, which names the field or the keyword, for what is no grammar, and for a strict schema that
    cannot be enforced in full.
    """
    if _requires_call(message):
        return _calls(message, grammars, marks)
    params = message.sampling
    kind = params.WhichOneof("structured_output")
    if kind is None:
        return None
    if kind == "json_schema":
        return _json(params, grammars)
    given, param = tuple(params.choice.texts) if kind == "choice" else str(getattr(params, kind)), f"sampling.{kind}"
    spec = GrammarSpec(kind, given, param)
    try:
        grammars.make(spec)
    except EmptyGrammar:
        raise InvalidRequest("no text matches this", param=param) from None
    except UnusableGrammar as error:
        raise InvalidRequest(_reason(kind, str(error)), param=param) from None
    return spec


def _requires_call(message: decoder_pb2.DecoderServiceGenerateRequest) -> bool:
    choice = message.tool_choice
    return bool(choice.function) or choice.mode == generation_pb2.TOOL_CHOICE_MODE_REQUIRED


def _reason(kind: str, error: str) -> str:
    """Return what is wrong with a grammar of the client's own, in words about its text alone."""
    if error.startswith(_OVER_LIMITS):
        return "this is too complex to be enforced"
    if kind == "regex":
        found = _REGEX_ERROR.search(error)
        more = f": {found[1] or 'look-around is not supported'}" if found else ""
        return f"this is not a regular expression in the syntax of Rust's regex crate{more}"
    if kind == "grammar":
        return f"this is not a grammar in llguidance's dialect of Lark: {error.splitlines()[0]}"
    return "these are too many texts to choose from, or too long ones"


def _json(params: generation_pb2.SamplingParams, grammars: Grammars) -> GrammarSpec:
    def spec(schema: Schema) -> GrammarSpec:
        return GrammarSpec("json_schema", json.dumps(closed(schema)), "sampling.json_schema")

    try:
        schema = json.loads(params.json_schema)
    except ValueError:
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequest("this is not a JSON object", param="sampling.json_schema")
    strict = params.json_schema_strict
    return spec(enforceable(schema, strict, "sampling.json_schema", lambda each: grammars.make(spec(each))))


def _calls(message: decoder_pb2.DecoderServiceGenerateRequest, grammars: Grammars, marks: Marks) -> GrammarSpec:
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
        if grammars.takes(whole):
            return whole
    kept = spec(
        [_kept(tool.function, param, lambda one: grammars.make(spec([one]))) for param, tool in offered.items()]
    )
    if not grammars.takes(kept):
        raise InvalidRequest("the tools are too many, or too complex to enforce together", param="tools")
    return kept


def _lenient(tool: generation_pb2.Tool) -> ToolFunction:
    """Return a function without the keywords that llguidance does not know, unless it is strict."""
    function = tool.function
    if function.strict:
        return ToolFunction.of(tool)
    return ToolFunction.read(function.name, lenient(json.loads(function.parameters or "{}")))


def _kept(function: generation_pb2.Function, param: str, compile_: Callable[[ToolFunction], object]) -> ToolFunction:
    """Return a function with what can be enforced of its parameters, which are at `param`."""
    schema = json.loads(function.parameters or "{}")
    kept = enforceable(schema, function.strict, param, lambda each: compile_(ToolFunction.read(function.name, each)))
    return ToolFunction.read(function.name, kept)


def _check_function(function: generation_pb2.Function, param: str) -> None:
    """Raise InvalidRequest for parameters that are described by themselves, and for a strict function with a keyword
    that no grammar of calls enforces."""
    parameters = json.loads(function.parameters or "{}")
    check_references(parameters, param)
    if function.strict and (found := keyword_beyond_calls(parameters)):
        path, keyword = found
        raise unenforced(keyword, f"{param}{path}")
