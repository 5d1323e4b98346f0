"""Writes the tables of docs/openai-api.md: what becomes of each field of a request in the chat and Responses APIs.

OpenAI's fields are those of openai-python's types; what becomes of them is read from the code that does it. `python
tools/openai_fields.py --check` changes nothing and fails when the page says something else.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming
from pages import ROOT, write_or_check
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict

from autoglm.gateway.openai.chat.request import ChatCompletionRequest
from autoglm.gateway.openai.fields import NO_EFFECT
from autoglm.gateway.openai.options import AnswerOptions
from autoglm.gateway.openai.responses.request import ResponseRequest

PAGE = ROOT / "docs" / "openai-api.md"
MANY = 2**31 - 1  # a limit from here on is none worth telling
MARK = "<!-- `tools/openai_fields.py` writes the table {}. -->"

Verdict = Literal["honoured", "refused", "no effect", ""]  # empty: not a field of that API


@dataclass(frozen=True, slots=True)
class ComparedApi:
    """One API: its request here, and OpenAI's."""

    request: type[AnswerOptions]
    published: Any  # a TypedDict

    @property
    def openai_fields(self) -> set[str]:
        """OpenAI's fields; an object that is not judged as a whole is its fields, `a.b`."""
        return {path for name, kind in get_type_hints(self.published).items() for path in self._paths(name, kind)}

    def _paths(self, name: str, kind: Any) -> Iterator[str]:
        (inner, *more) = [each for each in get_args(kind) if each is not type(None)] or [kind]
        nested = [f"{name}.{each}" for each in get_type_hints(inner)] if is_typeddict(inner) and not more else []
        decided = name in self.request.refused or name in NO_EFFECT
        yield from [name] if decided or not nested else []
        yield from (path for path in nested if not decided or path in self.request.refused)

    @property
    def own_fields(self) -> set[str]:
        """The fields that the request declares, and those that are refused by name."""
        published, declared = self.openai_fields, self.request.model_fields.items()
        paths = {path for name, field in declared for path in ([name] if name in published else _within(name, field))}
        return paths | set(self.request.refused)

    def verdict(self, path: str) -> tuple[Verdict, str]:
        """Return what becomes of a field, and the reason or a note."""
        if path in self.request.refused:
            return "refused", self.request.refused[path].why
        if path in NO_EFFECT and path in self.openai_fields | self.own_fields:
            return "no effect", NO_EFFECT[path]
        field = _declared(self.request, path)
        return ("", "") if field is None else ("honoured", _note(field))

    def undecided(self) -> set[str]:
        """Return OpenAI's fields of which nothing says what becomes of them."""
        return {path for path in self.openai_fields if not self.verdict(path)[0]}


CHAT = ComparedApi(ChatCompletionRequest, CompletionCreateParamsStreaming)
RESPONSES = ComparedApi(ResponseRequest, ResponseCreateParamsStreaming)


def _model(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that is an object, if it is one."""
    kinds = () if get_origin(field.annotation) is list else get_args(field.annotation)
    models = [each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)]
    return models[0] if len(models) == 1 else None


def _within(name: str, field: FieldInfo) -> list[str]:
    model = _model(field)
    if model is None:
        return [name]
    return [f"{name}.{inner.alias or key}" for key, inner in model.model_fields.items()]


def _declared(model: type[BaseModel], path: str) -> FieldInfo | None:
    name, dot, rest = path.partition(".")
    by_name = {field.alias or key: field for key, field in model.model_fields.items()}
    field = by_name.get(name)
    if field is None or not dot:
        return field
    inner = _model(field)
    return None if inner is None else _declared(inner, rest)


def _note(field: FieldInfo) -> str:
    """Return the limits of a number, and the field's description."""
    told = [
        f"{word} {getattr(each, name)}"
        for kind, name, word in ((Ge, "ge", "from"), (Gt, "gt", "above"), (Le, "le", "to"))
        for each in field.metadata
        if isinstance(each, kind) and abs(getattr(each, name)) < MANY
    ]
    limits = " ".join(told).capitalize()
    return " ".join(f"{each.removesuffix('.')}." for each in (limits, field.description) if each)


def _cell(api: ComparedApi, path: str) -> str:
    verdict, note = api.verdict(path)
    return f"{verdict}{'.' if verdict == 'honoured' else ':'} {note}" if note else verdict or "–"


def tables() -> dict[str, str]:
    """Return the two tables: OpenAI's fields, and those of other servers."""
    published = CHAT.openai_fields | RESPONSES.openai_fields
    objects = {path.partition(".")[0] for path in published}
    others = (CHAT.own_fields | RESPONSES.own_fields) - published - objects
    return {"of OpenAI's fields": _table(published), "of further fields": _table(others)}


def _table(paths: set[str]) -> str:
    rows = [(path, _cell(CHAT, path), _cell(RESPONSES, path)) for path in sorted(paths)]
    lines = [
        f"| `{path}` | {chat} | {'the same' if chat == responses else responses} |" for path, chat, responses in rows
    ]
    return "\n".join(["| Field | Chat | Responses |", "|---|---|---|", *lines])


def written(page: str) -> str:
    """Return `page` with the tables as they are now."""
    for name, table in tables().items():
        mark = MARK.format(name)
        page = re.sub(rf"{re.escape(mark)}\n\n(?:\|.*\n)*", f"{mark}\n\n{table}\n".replace("\\", r"\\"), page)
    return page


def main() -> None:
    """Rewrite the tables, or with --check compare them."""
    write_or_check(PAGE, written(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
