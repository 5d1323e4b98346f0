"""Formats that are expensive, or deep, for the answer to follow."""

from typing import Any

from .sending import OK, REFUSED, TOO_LARGE, Attack, Send, asking

DEPTH = 3000


def rules() -> Send:
    """A grammar in which each rule leads to the next."""
    chain = (f'r{number}: "x" r{number + 1} | "y"' for number in range(DEPTH))
    return asking(structured_outputs={"grammar": "\n".join(("start: r0", *chain, f'r{DEPTH}: "z"'))})


def references() -> Send:
    """A JSON Schema in which each definition is a reference to the next."""
    definitions: dict[str, Any] = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(DEPTH)}
    return schema({"$ref": "#/$defs/d0", "$defs": definitions | {f"d{DEPTH}": {"type": "string"}}})


def nested_objects() -> Send:
    """A JSON Schema of objects in objects, as deep as JSON's parsers permit."""
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(400):
        inner = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return schema(inner)


def doubled_branches() -> Send:
    """A JSON Schema in which each definition names the next one twice: 2 to the power of 24 branches."""
    definitions: dict[str, Any] = {
        f"d{number}": {"anyOf": [{"$ref": f"#/$defs/d{number + 1}"}, {"type": "array", "items": twice(number)}]}
        for number in range(24)
    }
    return schema({"$ref": "#/$defs/d0", "$defs": definitions | {"d24": {"type": "string"}}})


def twice(number: int) -> dict[str, Any]:
    """Return an object that has the definition after `number` two times."""
    after = {"$ref": f"#/$defs/d{number + 1}"}
    return {"type": "object", "properties": {"a": after, "b": after}}


def many_properties() -> Send:
    """A JSON Schema of one object with 20 000 properties."""
    return schema({"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(20_000)}})


def large_tools() -> Send:
    """64 tools of 200 parameters each, one of which must be called."""
    parameters = {f"p{number}": {"type": "string", "enum": [f"v{each}" for each in range(10)]} for number in range(200)}
    tools = [
        {
            "type": "function",
            "function": {"name": f"f{number}", "parameters": {"type": "object", "properties": parameters}},
        }
        for number in range(64)
    ]
    return asking(tools=tools, tool_choice="required")


def schema(value: dict[str, Any]) -> Send:
    """Ask for an answer that follows a JSON Schema."""
    return asking(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": value}})


def regex(expression: str) -> Send:
    """Ask for an answer that matches an expression."""
    return asking(structured_outputs={"regex": expression})


def choices(count: int) -> Send:
    """Ask for one of so many texts."""
    return asking(structured_outputs={"choice": [f"{number:012d}" for number in range(count)]})


BUSY = REFUSED | {"rate_limit_exceeded"}  # on a machine that is too busy to find out what it takes
EITHER = TOO_LARGE | BUSY | {OK}  # a server may bound it, or be able to follow it

FORMATS = (
    Attack("a chain of 3000 rules", rules, BUSY),
    Attack("a chain of 3000 references", references, BUSY),
    Attack("objects in objects, 400 deep", nested_objects, EITHER),
    Attack("a schema of 2^24 branches", doubled_branches, EITHER),
    Attack("a schema of 20 000 properties", many_properties, EITHER),
    Attack("64 large tools", large_tools, EITHER),
    Attack("100 000 choices", lambda: choices(100_000), EITHER),
    Attack("a regex of 1 MB", lambda: regex("|".join(f"w{number:06d}" for number in range(125_000))), EITHER),
    Attack("a regex of 20 000 groups", lambda: regex("(" * 20_000 + "a" + ")" * 20_000), BUSY),
    Attack("repetitions of repetitions", lambda: regex("((a{1000}){1000}){100}"), BUSY),
    Attack("a large class, repeated", lambda: regex(r"(\p{L}{1,300} ?){1,300}"), EITHER),
    Attack(
        "a rule repeated a million times",
        lambda: asking(structured_outputs={"grammar": 'start: "ab"{1000000}'}),
        BUSY,
    ),
)
