"""JSON Schemas whose objects have the properties that they name, and no others, where a schema leaves that open.

Left open, an object admits any further property, and a model can invent them until its tokens run out. xgrammar and
Outlines close objects too. An object that several schemas describe together stays open: each names only some of it.
"""

import json
from collections.abc import Iterator
from typing import Any

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = ("items", "additionalProperties", "contains")
_TOGETHER = {"not", "if", "dependentSchemas", "dependencies", "unevaluatedProperties", "$dynamicRef", "$recursiveRef"}
_BESIDE = {"anyOf", "oneOf", "allOf", "$ref"}


def closed(text: str) -> str:
    """Return the JSON Schema in `text`, closed; what is not a JSON object is returned as it is."""
    try:
        schema = json.loads(text)
    except ValueError:
        return text
    every = list(_schemas(schema))
    if any(_joins(each) for each in every):
        return text
    for each in every:
        if _is_open(each):
            each["additionalProperties"] = False
    return json.dumps(schema)


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield `schema` and every schema in it, but not the values that it only compares with or shows."""
    if not isinstance(schema, dict):
        return
    yield schema
    for name in _MAPS:
        for each in _values(schema.get(name)):
            yield from _schemas(each)
    for name in _LISTS:
        for each in schema[name] if isinstance(schema.get(name), list) else ():
            yield from _schemas(each)
    for name in _SINGLE:
        yield from _schemas(schema.get(name))


def _values(found: Any) -> Iterator[Any]:
    return iter(found.values() if isinstance(found, dict) else ())


def _joins(schema: dict[str, Any]) -> bool:
    """Return whether an object may have to match several schemas at once because of this one."""
    several = isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1
    return several or not _TOGETHER.isdisjoint(schema) or ("properties" in schema and not _BESIDE.isdisjoint(schema))


def _is_open(schema: dict[str, Any]) -> bool:
    properties, required = schema.get("properties"), schema.get("required", [])
    return (
        isinstance(properties, dict)
        and bool(properties)
        and "additionalProperties" not in schema
        and "minProperties" not in schema
        and isinstance(required, list)
        and all(name in properties for name in required)
    )
