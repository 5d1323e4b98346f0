"""Functions that the model may call, in the form of GLM-4.5 and 4.6:

    <tool_call>name
    <arg_key>key</arg_key>
    <arg_value>value</arg_value>
    </tool_call>

A value is written as it is where its schema says that it is a string, and as JSON otherwise.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from autoglm.decoder.detokenizer import overlap
from autoglm.decoder.engine.matchers import JSON_STYLE
from autoglm.fusion.prompt import PromptMessage, ToolCall
from autoglm.v1 import generation_pb2
from autoglm.v1.decoder_pb2 import DecoderServiceGenerateRequest
from autoglm.v1.generation_pb2 import FunctionCall, Tool

Marks = tuple[str, str]  # that open and close a call

_NAME = re.compile(r"\s*([\w-]*)\s*")
_ARGUMENT = re.compile(r"<arg_key>([^<]*)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)
_UNENDED = re.compile(r"<arg_key>[^<]*</arg_key>\s*<arg_value>")
_DEFINITIONS = ("$defs", "definitions")
_NOT_IN_TEXTS = ("format", "allOf", "anyOf", "oneOf", "not", "if")
_NOT_IN_CALLS = (
    "allOf", "anyOf", "oneOf", "not", "if", "dependentRequired", "dependentSchemas", "dependencies", "propertyNames",
    "minProperties", "maxProperties",
)  # fmt: skip
_ENDLESS = r"~/(?s:.*)<\/arg_value>(?s:.*)/"  # any bytes without the mark that ends a value


@dataclass(frozen=True, slots=True)
class ToolFunction:
    """A function's name and the JSON Schemas of its arguments; `definitions` are what these may refer to, and `options`
    llguidance's."""

    name: str
    arguments: Mapping[str, Mapping[str, Any]]
    required: frozenset[str]
    definitions: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, tool: Tool) -> "ToolFunction":
        """Read it from a request."""
        return cls.read(tool.function.name, json.loads(tool.function.parameters or "{}"))

    @classmethod
    def read(cls, name: str, parameters: Mapping[str, Any]) -> "ToolFunction":
        """Read it from the JSON Schema of its arguments. One that is required and has no schema may be anything."""
        definitions = {group: parameters[group] for group in _DEFINITIONS if group in parameters}
        schema = _resolved(parameters, definitions)
        required, properties = schema.get("required", ()), schema.get("properties", {})
        schemas = {**properties, **{key: {} for key in required if key not in properties}}
        arguments = {key: _resolved(each, definitions) for key, each in schemas.items()}
        return cls(name, arguments, frozenset(required), definitions, parameters.get("x-guidance", {}))

    def value(self, key: str, text: str) -> Any:
        """Return the argument that the model wrote as `text`; what should be JSON and is not stays text."""
        if _is_text(self.arguments.get(key, {})):
            return text
        try:
            value = from_json(text, allow_inf_nan=False)
            from_json(json.dumps([value], allow_nan=False))  # the next turn reads it again, one level deeper
        except ValueError:
            return text
        return value


def description(tool: Tool) -> str:
    """Return how the prompt describes a tool: JSON as json.dumps writes it, with the keys in OpenAI's order."""
    function = {"name": tool.function.name}
    if tool.function.description:
        function["description"] = tool.function.description
    if tool.function.parameters:
        function["parameters"] = json.loads(tool.function.parameters)
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


def written(call: generation_pb2.ToolCall) -> ToolCall:
    """Return an earlier call as the model writes it.

    Its arguments may be anything that a model has written: those that are cut off are read as far as they go, those
    that are not a JSON object become one argument named `arguments`.
    """
    text = call.function.arguments
    value = _read(text) if text.strip() else None
    if value is None:
        return ToolCall(call.function.name, {})
    arguments = value if isinstance(value, dict) else {"arguments": text}
    return ToolCall(call.function.name, {key: _written(value) for key, value in arguments.items()})


def in_words(turn: PromptMessage) -> PromptMessage:
    """Return an earlier turn for a chat template without tools: its calls as text, a result as what the user says."""
    calls = "\n".join(f"{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})" for call in turn.calls)
    parts = (*turn.parts, calls) if calls else turn.parts
    return PromptMessage("user" if turn.role == "tool" else turn.role, parts)


def _read(text: str) -> object:
    """Return the JSON value in `text`, as much as there is of one that is cut off; `text` itself if it is not JSON."""
    try:
        return from_json(text)
    except ValueError as error:
        is_cut_off = str(error).startswith("EOF")
    try:
        return from_json(text, allow_partial="trailing-strings") if is_cut_off else text
    except ValueError:
        return text


def is_single(message: DecoderServiceGenerateRequest) -> bool:
    """Return whether an answer may have at most one call: the request says so, or names the one function."""
    forbids = message.HasField("parallel_tool_calls") and not message.parallel_tool_calls
    return forbids or bool(message.tool_choice.function)


class ToolCalls:
    """Takes the calls out of an answer as it comes; with `single` the answer is `over` after the first.

    White space around calls goes with them. What only looks like a call, or calls a function that was not offered,
    is text.
    """

    @classmethod
    def of(cls, message: DecoderServiceGenerateRequest, marks: Marks) -> "ToolCalls | None":
        """Return what looks for calls in the answer to a request; None for one that offers no tools."""
        functions = [ToolFunction.of(tool) for tool in message.tools]
        return cls(functions, is_single(message), marks) if functions else None

    def __init__(self, functions: Sequence[ToolFunction], single: bool, marks: Marks) -> None:
        self._functions = {function.name: function for function in functions}
        self._open, self._close = marks
        self._single = single
        self._held = ""
        self.made = 0

    @property
    def over(self) -> bool:
        """Return whether nothing may follow."""
        return self._single and self.made > 0

    def feed(self, text: str) -> tuple[str, list[generation_pb2.ToolCall]]:
        """Return the text and the calls that `text` completes."""
        self._held += text
        said, calls = "", []
        while (at := self._held.find(self._open)) >= 0 and self._held.find(self._close, at) >= 0:
            call, end = self._read(at)
            if end < 0:
                break
            if call is None:
                said += self._take(end)
                continue
            said += self._take(end)[:at].rstrip()
            calls.append(call)
            self.made += 1
            if self.over:
                self._held = ""
        free = at if at >= 0 else len(self._held) - overlap(self._held, self._open)
        return said + self._take(len(self._held[:free].rstrip())), calls

    def flush(self) -> str:
        """Return the text that was kept back for a call that did not come."""
        rest = self._take(len(self._held))
        return "" if self.made and rest.isspace() else rest

    def _read(self, start: int) -> tuple[generation_pb2.ToolCall | None, int]:
        """Return the call at `start` and its end: (None, end of the mark) if it is not a call, (None, -1) while more of
        it may come."""
        head = _NAME.match(self._held, start + len(self._open))
        assert head is not None  # it matches nothing at all, too
        function, at, arguments = self._functions.get(head[1]), head.end(), {}
        while argument := _ARGUMENT.match(self._held, at):
            at = argument.end()
            key = argument[1].strip()
            arguments[key] = function.value(key, argument[2]) if function else argument[2]
        if function and self._held.startswith(self._close, at):
            return _call(function.name, arguments), at + len(self._close)
        waits = _UNENDED.match(self._held, at) or self._held.find(self._close, at) < 0
        return None, -1 if waits else start + len(self._open)

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken


def keyword_beyond_calls(parameters: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first keyword of a function's `parameters` that no grammar of its calls enforces, as the path of its
    schema and its name; a property whose name cannot be written counts as one."""
    function = ToolFunction.read("", parameters)
    for key, schema in function.arguments.items():
        if "<" in key:
            return ".properties", key
        if _is_text(schema) and (found := next((name for name in _NOT_IN_TEXTS if name in schema), None)):
            reference = parameters.get("properties", {})[key].get("$ref", f"#/properties/{key}")
            return reference.removeprefix("#").replace("/", "."), found
    return next((("", name) for name in _NOT_IN_CALLS if name in parameters), None)


def grammar(functions: Sequence[ToolFunction], single: bool, marks: Marks) -> str:
    """Return the grammar, in llguidance's dialect of Lark, of an answer that calls one of `functions`, or several
    unless `single`. Arguments come in the order of their schema; those that are not required may be left out, and those
    whose name has a mark in it are."""
    rules = [
        rule for number, function in enumerate(functions) for rule in _function_rules(f"f{number}", function, marks)
    ]
    names = " | ".join(f"f{number}" for number in range(len(functions)))
    more = "" if single else r' ("\n" call)*'
    return "\n".join([rf'start: "\n"? call{more}', f"call: {names}", *rules])


def _function_rules(rule: str, function: ToolFunction, marks: Marks) -> list[str]:
    uses, rules = "", []
    for number, (key, schema) in enumerate(function.arguments.items()):
        if "<" in key:
            continue
        name = f"{rule}_{number}"
        uses += f" {name}" if key in function.required else f" {name}?"
        rules += _argument_rules(name, key, schema, function)
    begin = json.dumps(f"{marks[0]}{function.name}\n")
    return [f"{rule}: {begin}{uses} {json.dumps(marks[1])}", *rules]


def _argument_rules(rule: str, key: str, schema: Mapping[str, Any], function: ToolFunction) -> list[str]:
    begin = json.dumps(f"<arg_key>{key}</arg_key>\n<arg_value>")
    if _is_text(schema):
        terminal = rule.upper()
        return [rf'{rule}: {begin} {terminal} "\n"', f'{terminal}: ({_text(schema)}) "</arg_value>"']
    styled = {**schema, **function.definitions, "x-guidance": {**function.options, **JSON_STYLE}}
    return [rf'{rule}: {begin} {rule}_value "</arg_value>\n"', f"{rule}_value: %json {json.dumps(styled)}"]


def _text(schema: Mapping[str, Any]) -> str:
    """Return the terminal of a text that its schema allows and that can be written as a value."""
    if texts := [text for text in _choices(schema) if isinstance(text, str)]:
        return " | ".join(json.dumps(text) for text in texts)
    most = int(schema["maxLength"]) if "maxLength" in schema else ""
    parts = [f"/(?s:.{{{int(schema.get('minLength', 0))},{most}}})/", _ENDLESS]
    if "pattern" in schema:
        parts.append(f"/{_anywhere(schema['pattern'])}/")
    return " & ".join(parts)


def _anywhere(pattern: str) -> str:
    """Return a JSON Schema's pattern, which may match anywhere, as one for the whole text."""
    before = "" if pattern.startswith("^") else "(?s:.*)"
    after = "" if pattern.endswith("$") else "(?s:.*)"
    inner = pattern.removeprefix("^").removesuffix("$")
    return re.sub(r"(?<!\\)/", r"\/", f"{before}(?:{inner}){after}")


def _is_text(schema: Mapping[str, Any]) -> bool:
    if "type" in schema:
        return bool(schema["type"] == "string")
    choices = _choices(schema)
    return bool(choices) and all(isinstance(choice, str) for choice in choices)


def _choices(schema: Mapping[str, Any]) -> Sequence[Any]:
    """Return the values that a schema lists, if it does."""
    return [schema["const"]] if "const" in schema else schema.get("enum", ())


def _resolved(schema: Any, definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema that `schema` refers to, or itself; `true` is one that allows all."""
    if isinstance(schema, dict) and "$ref" in schema:
        group, _, name = str(schema["$ref"]).removeprefix("#/").partition("/")
        known = definitions.get(group)
        schema = known.get(name, schema) if isinstance(known, dict) else schema
    return schema if isinstance(schema, dict) else {}


def _call(name: str, arguments: Mapping[str, Any]) -> generation_pb2.ToolCall:
    function = FunctionCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False))
    return generation_pb2.ToolCall(id=f"call_{secrets.token_hex(12)}", function=function)


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
