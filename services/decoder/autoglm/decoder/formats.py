"""What the answer to a request has to match, as far as a grammar can enforce it: function calls, if some are required,
else the format that is asked for."""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autoglm.common.deadlines import Deadline
from autoglm.common.errors import InvalidRequest, RateLimited
from autoglm.decoder.closed_objects import closed
from autoglm.decoder.engine.grammar import Grammars
from autoglm.decoder.engine.matchers import EmptyGrammar, UnusableGrammar
from autoglm.decoder.engine.request import GrammarSpec
from autoglm.decoder.engine.trials import TOO_COMPLEX
from autoglm.decoder.json_schema import Schema, check_references, enforceable, lenient, unenforced
from autoglm.decoder.tools import Marks, ToolFunction, grammar, is_single, keyword_beyond_calls
from autoglm.v1 import decoder_pb2, generation_pb2

FORMAT_SECONDS = 10.0  # for all that is tried until a format can be enforced
# Begin llguidance's messages about what it cannot hold.
_OVER_LIMITS = ("lexer error", "lexer precomputation", "parser error", "Parser Error", "fuel", "panic")
_REGEX_ERROR = re.compile(r"error: (.+)|(lookarounds not supported)")


@dataclass(frozen=True, slots=True)
class _Attempts:
    """Compiles formats for one request, one after another and not for ever."""

    grammars: Grammars
    deadline: Deadline
    ends: float = field(default_factory=lambda: time.monotonic() + FORMAT_SECONDS)

    def compile(self, spec: GrammarSpec) -> None:
        """Compile `spec`; raises what Grammars.compiled raises, and InvalidRequest when enough has been tried."""
        if time.monotonic() > self.ends:
            raise InvalidRequest(TOO_COMPLEX, param=spec.param)
        until = self.deadline.at
        self.grammars.compiled(spec, float("inf") if until is None else until)

    def takes(self, spec: GrammarSpec) -> bool:
        """Return whether `spec` is a grammar; raises what `compile` raises for one that takes too much."""
        try:
            self.compile(spec)
        except UnusableGrammar:
            return False
        return True


def has_format(message: decoder_pb2.DecoderServiceGenerateRequest) -> bool:
    """Return whether the answer has to match anything: its grammar can take a second to make."""
    return _requires_call(message) or message.sampling.WhichOneof("structured_output") is not None


def read_format(
    message: decoder_pb2.DecoderServiceGenerateRequest,
    grammars: Grammars,
    marks: Marks,
    deadline: Deadline = Deadline(),  # noqa: B008 - it is frozen
) -> GrammarSpec | None:
    """Return what the answer has to match, with `marks` around function calls; None for any answer.

    Raises InvalidRequest, which names the field or the keyword, for what is no grammar or takes too much to compile,
    and for a strict schema that cannot be enforced in full; RateLimited while too many formats are being compiled.
    """
    attempts = _Attempts(grammars, deadline)
    if _requires_call(message):
        return _calls(message, attempts, marks)
    params = message.sampling
    kind = params.WhichOneof("structured_output")
    if kind is None:
        return None
    if kind == "json_schema":
        return _json(params, attempts)
    if kind == "grammar" and grammars.is_busy:
        raise RateLimited("other grammars take all the time there is for grammars; try again")
    given, param = tuple(params.choice.texts) if kind == "choice" else str(getattr(params, kind)), f"sampling.{kind}"
    spec = GrammarSpec(kind, given, param)
    try:
        attempts.compile(spec)
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
        return TOO_COMPLEX
    if kind == "regex":
        found = _REGEX_ERROR.search(error)
        more = f": {found[1] or 'look-around is not supported'}" if found else ""
        return f"this is not a regular expression in the syntax of Rust's regex crate{more}"
    if kind == "grammar":
        return f"this is not a grammar in llguidance's dialect of Lark: {error.splitlines()[0]}"
    return "these are too many texts to choose from, or too long ones"


def _json(params: generation_pb2.SamplingParams, attempts: "_Attempts") -> GrammarSpec:
    def spec(schema: Schema) -> GrammarSpec:
        return GrammarSpec("json_schema", json.dumps(closed(schema)), "sampling.json_schema")

    try:
        schema = json.loads(params.json_schema)
    except ValueError:
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequest("this is not a JSON object", param="sampling.json_schema")
    strict = params.json_schema_strict
    return spec(enforceable(schema, strict, "sampling.json_schema", lambda each: attempts.compile(spec(each))))


def _calls(message: decoder_pb2.DecoderServiceGenerateRequest, attempts: "_Attempts", marks: Marks) -> GrammarSpec:
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
        if attempts.takes(whole):
            return whole
    kept = spec(
        [_kept(tool.function, param, lambda one: attempts.compile(spec([one]))) for param, tool in offered.items()]
    )
    if not attempts.takes(kept):
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
