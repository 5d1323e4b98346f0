"""Reading what a plan is made from: YAML or JSON of a fixed form. Errors name the field and what it may be."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails


class PlanError(Exception):
    """A plan cannot be made; the message says in one line why, and what to change."""


class PlanSchema(BaseModel):
    """The base of everything that is read: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Read = TypeVar("Read", bound=PlanSchema)


def read_mapping(path: Path) -> Mapping[str, Any]:
    """Return the mapping in a YAML or JSON file; raises PlanError."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path} cannot be read ({error.strerror}): give the path of a file") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise PlanError(f"{path} must be a mapping of fields, not {type(raw).__name__}")
    return raw


def validated(schema: type[Read], raw: object, where: str) -> Read:
    """Return `raw` as `schema`; raises PlanError, whose message begins with `where`, for the first wrong field."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise PlanError(f"{where}: {_explained(schema, error.errors(include_url=False)[0])}") from None


def _explained(schema: type[PlanSchema], wrong: ErrorDetails) -> str:
    path, given = _path(wrong["loc"]), wrong["input"]
    if wrong["type"] == "extra_forbidden":
        fields = list(_schema_at(schema, wrong["loc"][:-1]).model_fields)
        near = get_close_matches(str(wrong["loc"][-1]), fields, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{path}: no such field; {hint}Fields: {', '.join(fields)}"
    if wrong["type"] == "missing":
        return f"{path}: this field is required"
    message = wrong["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(given, dict | list) else f" (it is {given!r})"
    return f"{path}: {message[0].lower()}{message[1:]}{shown}" if path else message


def _path(location: tuple[int | str, ...]) -> str:
    """Return a location as `classes[1].output_tokens`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in location).removeprefix(".")


def _schema_at(schema: type[PlanSchema], location: tuple[int | str, ...]) -> type[PlanSchema]:
    """Return the schema of the mapping at `location`."""
    for key in location:
        if isinstance(key, str):
            annotation = schema.model_fields[key].annotation
            found = (annotation, *get_args(annotation))
            schema = next(each for each in found if isinstance(each, type) and issubclass(each, PlanSchema))
    return schema
