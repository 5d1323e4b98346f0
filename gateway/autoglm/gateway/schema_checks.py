"""Checks of the JSON Schemas in a request, before any service sees them. What a grammar can enforce of one is the
decoder's to say: unknown keywords and formats are legal here."""

from typing import Any

import jsonschema_rs
import orjson

from autoglm.common.errors import InvalidRequest
from autoglm.common.format_sizes import MAX_FORMAT_BYTES
from autoglm.gateway.conversation import Conversation
from autoglm.gateway.json_bounds import num_values
from autoglm.gateway.limits import MAX_VALUES, check_bytes, check_count

# A schema is one if any of these takes it: clients rarely say which they mean, and later drafts refuse what earlier
# ones allow, such as a list of schemas in `items`.
DRAFTS = (
    "https://json-schema.org/draft/2020-12/schema",
    "http://json-schema.org/draft-07/schema#",
    "http://json-schema.org/draft-04/schema#",
)
SHOWN = 60  # characters of a wrong value


def read_schema(text: str, param: str) -> dict[str, Any]:
    """Return the JSON Schema in `text`, which is at `param`; raises InvalidRequest, which names the keyword, if it is
    none or is nested too deeply."""
    try:
        schema = orjson.loads(text)
        orjson.dumps(schema)  # its depth limit is lower than that of loads, and holds for the services too
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{param} must be a JSON object", param=param)
    if all(errors := [_error(schema, draft) for draft in DRAFTS]):
        where, value = errors[0] or ("", None)
        said = orjson.dumps(value).decode()
        shown = said if len(said) <= SHOWN else f"{said[:SHOWN]}…"
        raise InvalidRequest(f"{param}{where}: {shown} is not valid in a JSON Schema", param=param + where)
    return schema


def check_format(conversation: Conversation) -> None:
    """Raise InvalidRequest for a format that is too long, or for a schema that is no JSON Schema."""
    sampling = conversation.sampling
    kind = sampling.WhichOneof("structured_output")
    if kind is None:
        return
    param = conversation.paths.blamed(f"sampling.{kind}")
    text = "".join(sampling.choice.texts) if kind == "choice" else getattr(sampling, kind)
    check_bytes(text, MAX_FORMAT_BYTES[kind], param)
    if kind == "json_schema":
        check_count(num_values(sampling.json_schema), MAX_VALUES, "values", param)
        read_schema(sampling.json_schema, param)


def _error(schema: dict[str, Any], draft: str) -> tuple[str, object] | None:
    """Return the path and the value of the first keyword that a draft does not take."""
    try:
        jsonschema_rs.meta.validate({**schema, "$schema": draft})
    except jsonschema_rs.ValidationError as error:
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path)
        return "".join(steps), error.instance
    return None
