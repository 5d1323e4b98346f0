"""The grammar of an answer that calls functions; see tool_functions for its form."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from autoglm.decoder.engine.matchers import JSON_STYLE
from autoglm.decoder.tool_functions import Marks, ToolFunction, choices, is_text

_NOT_IN_TEXTS = ("format", "allOf", "anyOf", "oneOf", "not", "if")
_NOT_IN_CALLS = (
    "allOf", "anyOf", "oneOf", "not", "if", "dependentRequired", "dependentSchemas", "dependencies", "propertyNames",
    "minProperties", "maxProperties",
)  # fmt: skip
_ENDLESS = r"~/(?s:.*)<\/arg_value>(?s:.*)/"  # any bytes without the mark that ends a value


def keyword_beyond_calls(parameters: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first keyword of a function's `parameters` that no grammar of its calls enforces, as the path of its
    schema and its name; a property whose name cannot be written counts as one."""
    function = ToolFunction.read("", parameters)
    for key, schema in function.arguments.items():
        if "<" in key:
            return ".properties", key
        if is_text(schema) and (found := next((name for name in _NOT_IN_TEXTS if name in schema), None)):
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
    if is_text(schema):
        terminal = rule.upper()
        return [rf'{rule}: {begin} {terminal} "\n"', f'{terminal}: ({_text(schema)}) "</arg_value>"']
    styled = {**schema, **function.definitions, "x-guidance": {**function.options, **JSON_STYLE}}
    return [rf'{rule}: {begin} {rule}_value "</arg_value>\n"', f"{rule}_value: %json {json.dumps(styled)}"]


def _text(schema: Mapping[str, Any]) -> str:
    """Return the terminal of a text that its schema allows and that can be written as a value."""
    if texts := [text for text in choices(schema) if isinstance(text, str)]:
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
