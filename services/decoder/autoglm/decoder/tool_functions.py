"""Functions that the model may call, in the form of GLM-4.5 and 4.6:

    <tool_call>name
    <arg_key>key</arg_key>
    <arg_value>value</arg_value>
    </tool_call>

A value is written as it is where its schema says that it is a string, and as JSON otherwise.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from autoglm.v1.decoder_pb2 import DecoderServiceGenerateRequest
from autoglm.v1.generation_pb2 import Tool

Marks = tuple[str, str]  # that open and close a call

_DEFINITIONS = ("$defs", "definitions")


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
        if is_text(self.arguments.get(key, {})):
            return text
        try:
            value = from_json(text, allow_inf_nan=False)
            from_json(json.dumps([value], allow_nan=False))  # the next turn reads it again, one level deeper
        except ValueError:
            return text
        return value


def is_single(message: DecoderServiceGenerateRequest) -> bool:
    """Return whether an answer may have at most one call: the request says so, or names the one function."""
    forbids = message.HasField("parallel_tool_calls") and not message.parallel_tool_calls
    return forbids or bool(message.tool_choice.function)


def is_text(schema: Mapping[str, Any]) -> bool:
    """Return whether a schema says that its values are strings."""
    if "type" in schema:
        return bool(schema["type"] == "string")
    listed = choices(schema)
    return bool(listed) and all(isinstance(each, str) for each in listed)


def choices(schema: Mapping[str, Any]) -> Sequence[Any]:
    """Return the values that a schema lists, if it does."""
    return [schema["const"]] if "const" in schema else schema.get("enum", ())


def _resolved(schema: Any, definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema that `schema` refers to, or itself; `true` is one that allows all."""
    if isinstance(schema, dict) and "$ref" in schema:
        group, _, name = str(schema["$ref"]).removeprefix("#/").partition("/")
        known = definitions.get(group)
        schema = known.get(name, schema) if isinstance(known, dict) else schema
    return schema if isinstance(schema, dict) else {}
