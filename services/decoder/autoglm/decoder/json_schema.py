"""JSON Schemas as far as a grammar can enforce them.

A schema describes, so one that cannot be enforced in full is no error unless the request is strict: the keywords that
are in the way are left out, and in the end the schema may be only the types and names at its top. llguidance says what
is in the way in a message alone, so this module reads its messages; a test has each of them.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeAlias
from urllib.parse import unquote

from autoglm.common.errors import InvalidRequest
from autoglm.decoder.engine.matchers import EmptyGrammar, UnusableGrammar

Schema: TypeAlias = dict[str, Any]
MAX_REPAIRS = 6
_LENIENT = {"lenient": True}
_IN_LISTS = {"allOf", "anyOf", "oneOf", "prefixItems", "items"}
_IN_MAPS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
_INSIDE = {
    "items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "additionalItems",
    "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
_QUOTED = re.compile(r"\n +\d+ \| ")  # begins each line of the grammar that a message quotes
_UNKNOWN_KEYS = re.compile(r"Unimplemented keys: (\[.*?\])")
_UNKNOWN_FORMAT = re.compile(r"Unknown format: (.*)")
_NO_RESOURCE = re.compile(r"Resource '([^']*)' is not present")
_NO_TARGET = re.compile(r"(?:Pointer|Anchor) '([^']*)' does not exist")
_BAD_VALUE = re.compile(r"for '([^']+)', got")
_REASONS = {  # what the message about a keyword adds
    "format": " with this value",
    "pattern": ": it has to be a regular expression without look-around",
    "patternProperties": ": its names have to be regular expressions without look-around",
    "$ref": ": it has to refer to a schema in the same document",
    "$schema": " with this value",
}


def enforceable(schema: Schema, strict: bool, param: str, compile_: Callable[[Schema], object]) -> Schema:
    """Return what `compile_` takes of `schema`, which is at `param`; it raises UnusableGrammar for what it does not.

    Raises InvalidRequest if no value at all matches the schema or it loops, and, naming a keyword in the way, if it is
    `strict` and cannot be enforced in full.
    """
    check_references(schema, param)
    try:
        compile_(schema)
    except EmptyGrammar:
        raise InvalidRequest("no value can satisfy this schema", param=param) from None
    except UnusableGrammar as error:
        if strict:
            raise refusal(schema, str(error), param) from None
        return _repaired(schema, str(error), compile_)
    return schema


def check_references(schema: Schema, param: str) -> None:
    """Raise InvalidRequest, which names the `$ref`, if a schema inside `schema`, which is at `param`, is described by
    itself: by references that lead back to it with no property or item between. What that means is undefined."""
    waiting, graph = list(schemas(schema)), dict[int, list[int]]()
    paths = {id(each): path for path, each in waiting}
    while waiting:
        path, each = waiting.pop()
        path = paths.setdefault(id(each), path)  # its own, not that of all references on the way here
        if id(each) not in graph:
            also = list(_also(schema, path, each))
            graph[id(each)] = [id(other) for _, other in also]
            waiting += also
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        at = f"{param}{min(paths[each] for each in error.args[1])}"
        raise InvalidRequest("this schema refers to itself, directly or by way of others", param=at) from None


def _also(root: Schema, path: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield what a value has to match too if it is to match `schema`: the target of its reference within `root`, and
    what is in allOf."""
    together = schema.get("allOf")
    found = [(f"{path}.allOf[{n}]", each) for n, each in enumerate(together)] if isinstance(together, list) else []
    found.append((f"{path}.$ref", _target(root, schema.get("$ref"))))
    yield from ((where, each) for where, each in found if isinstance(each, dict))


def _target(root: Schema, reference: Any) -> Any:
    """Return what a JSON Pointer such as #/$defs/x leads to in `root`, None if it is none or leads nowhere."""
    if not isinstance(reference, str) or not re.match("#(/|$)", reference):
        return None
    found: Any = root
    for step in unquote(reference[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            found = found[int(name)] if name.isdecimal() and int(name) < len(found) else None
        else:
            found = found.get(name) if isinstance(found, dict) else None
    return found


def lenient(schema: Schema) -> Schema:
    """Return `schema` with llguidance's option to leave out keywords and formats that it does not know."""
    return {**schema, "x-guidance": _LENIENT}


def refusal(schema: Schema, error: str, param: str) -> InvalidRequest:
    """Return the error for a strict `schema` at `param` that llguidance refuses with `error`."""
    if found := next(_in_the_way(schema, error), None):
        return unenforced(found[1], f"{param}{found[0]}")
    why = "no value can satisfy it" if "nsatisfiable" in error else "no value can satisfy it, or it is too complex"
    return InvalidRequest(f"this schema cannot be enforced: {why}; change it or do not set strict", param=param)


def unenforced(name: str, param: str) -> InvalidRequest:
    """Return the error for the keyword `name` of a strict schema at `param`."""
    reason = ": the name of a property of a call has no <" if "<" in name else _REASONS.get(name, "")
    return InvalidRequest(f"{name} cannot be enforced{reason}; remove it or do not set strict", param=f"{param}.{name}")


def _repaired(schema: Schema, error: str, compile_: Callable[[Schema], object]) -> Schema:
    """Return `schema`, refused with `error`, without the keywords that are in the way, or what can be kept of it."""
    schema = json.loads(json.dumps(lenient(schema)))
    found, repairs = list(_in_the_way(schema, error)), 0
    while found and repairs < MAX_REPAIRS:
        try:
            compile_(schema)
            return schema
        except UnusableGrammar as failure:
            found, repairs = list(_in_the_way(schema, str(failure))), repairs + 1
        for _, name, each in found:
            del each[name]
    return _outlined(schema, compile_)


def _outlined(schema: Schema, compile_: Callable[[Schema], object]) -> Schema:
    """Return the types and names at the top of `schema`, or without those any JSON of its type."""
    kept = {name: schema[name] for name in ("type", "required") if name in schema}
    properties = {
        key: {name: value for name, value in each.items() if name == "type"} if isinstance(each, dict) else {}
        for key, each in schema.get("properties", {}).items()
    }
    for outline in (kept | {"properties": properties}, {"type": schema["type"]} if "type" in schema else {}):
        try:
            compile_(outline)
            return outline
        except UnusableGrammar:
            continue
    return {}


def _in_the_way(schema: Schema, error: str) -> Iterator[tuple[str, str, Schema]]:
    """Yield each keyword that llguidance's message is about: the path of its schema, its name, and its schema."""
    said = _QUOTED.split(error)[0]
    for path, each in schemas(schema):
        for name, value in each.items():
            if _is_meant(name, value, said):
                yield path, name, each


def _is_meant(name: str, value: Any, error: str) -> bool:
    if keys := _UNKNOWN_KEYS.search(error):
        return name in json.loads(keys[1])
    if unknown := _UNKNOWN_FORMAT.search(error):
        return name == "format" and str(value) == unknown[1].strip()
    if "oneOf constraints" in error:
        return name == "oneOf"
    if resource := _NO_RESOURCE.search(error):
        document = value.partition("#")[0] if isinstance(value, str) else ""
        return name in ("$ref", "$schema", "$dynamicRef") and document != "" and resource[1].endswith(document)
    if target := _NO_TARGET.search(error):
        return name in ("$ref", "$dynamicRef") and str(value).endswith(f"#{target[1]}")
    if "unknown field" in error:
        return name == "x-guidance" and value != _LENIENT
    if bad := _BAD_VALUE.search(error):
        return name == bad[1]
    patterns = {"pattern": [value], "patternProperties": value}.get(name, ())
    return "regex" in error and any(_bare(pattern) in error.replace("\\", "") for pattern in patterns)


def _bare(pattern: Any) -> str:
    """Return a pattern without what differs between a schema and a message."""
    return str(pattern).removeprefix("^").removesuffix("$").replace("\\", "")


def schemas(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield a schema and all schemas in it, each with its path."""
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        path, each = waiting.pop()
        if not isinstance(each, dict):
            continue
        yield path, each
        found = [inner for name, value in each.items() for inner in _may_be_schemas(f"{path}.{name}", name, value)]
        waiting += reversed(found)


def _may_be_schemas(path: str, name: str, value: Any) -> Iterable[tuple[str, Any]]:
    """Return what may be schemas in the value of the keyword `name`, each with its path."""
    if name in _IN_MAPS and isinstance(value, dict):
        return [(f"{path}.{key}", each) for key, each in value.items()]
    if name in _IN_LISTS and isinstance(value, list):
        return [(f"{path}[{number}]", each) for number, each in enumerate(value)]
    return [(path, value)] if name in _INSIDE else ()
