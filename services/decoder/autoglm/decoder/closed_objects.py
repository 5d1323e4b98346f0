"""JSON Schemas whose objects have the properties that they name, and no others, where a schema leaves that open.

Left open, an object admits any further property, and a model can invent them until its tokens run out. xgrammar and
Outlines close objects too. An object that several schemas describe together stays open: each names only some of it.
"""

import copy

from autoglm.decoder.json_schema import Schema, schemas

_TOGETHER = {"not", "if", "dependentSchemas", "dependencies", "unevaluatedProperties", "$dynamicRef", "$recursiveRef"}
_BESIDE = {"anyOf", "oneOf", "allOf", "$ref"}


def closed(schema: Schema) -> Schema:
    """Return `schema` with its objects closed."""
    found = copy.deepcopy(schema)
    every = [each for _, each in schemas(found)]
    if any(_joins(each) for each in every):
        return schema
    for each in every:
        if _is_open(each):
            each["additionalProperties"] = False
    return found


def _joins(schema: Schema) -> bool:
    """Return whether an object may have to match several schemas at once because of this one."""
    several = isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1
    return several or not _TOGETHER.isdisjoint(schema) or ("properties" in schema and not _BESIDE.isdisjoint(schema))


def _is_open(schema: Schema) -> bool:
    properties, required = schema.get("properties"), schema.get("required", [])
    return (
        isinstance(properties, dict)
        and bool(properties)
        and "additionalProperties" not in schema
        and "minProperties" not in schema
        and isinstance(required, list)
        and all(name in properties for name in required)
    )
