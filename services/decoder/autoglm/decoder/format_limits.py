"""How large a format and tools may be. It is checked before anything is done with them; what is within these limits and
still takes too much to compile ends in trial_process.py."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from autoglm.common.errors import InvalidRequest
from autoglm.common.format_sizes import (
    MAX_CHOICE_TEXTS,
    MAX_FORMAT_BYTES,
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
)
from autoglm.v1 import decoder_pb2, generation_pb2


def check_sizes(message: decoder_pb2.DecoderServiceGenerateRequest) -> None:
    """Raise InvalidRequest, which names the field, for a format or tools beyond the limits."""
    _check_format(message.sampling)
    _check_tools(message)


def _check_format(params: generation_pb2.SamplingParams) -> None:
    kind = params.WhichOneof("structured_output")
    if kind is None:
        return
    param = f"sampling.{kind}"
    if kind == "choice":
        _check_choices(params.choice.texts, param)
        return
    given = str(getattr(params, kind))
    _check_bytes(len(given.encode()), MAX_FORMAT_BYTES[kind], param)
    if kind == "json_schema":
        _check_depth(given, param)


def _check_choices(texts: Sequence[str], param: str) -> None:
    if len(texts) > MAX_CHOICE_TEXTS:
        raise InvalidRequest(
            f"a choice may be of up to {MAX_CHOICE_TEXTS} texts; this one has {len(texts)}", param=param
        )
    _check_bytes(sum(len(text.encode()) for text in texts), MAX_FORMAT_BYTES["choice"], param)


def _check_tools(message: decoder_pb2.DecoderServiceGenerateRequest) -> None:
    total = sum(len(tool.function.parameters.encode()) for tool in message.tools)
    if total > MAX_SCHEMA_BYTES:
        raise InvalidRequest(
            f"the parameters of all tools may have up to {MAX_SCHEMA_BYTES} bytes together; these have {total}",
            param="tools",
        )
    for number, tool in enumerate(message.tools):
        _check_depth(tool.function.parameters or "{}", f"tools[{number}].function.parameters")


def _check_bytes(size: int, limit: int, param: str) -> None:
    if size > limit:
        raise InvalidRequest(f"this may have up to {limit} bytes, but has {size}", param=param)


def _check_depth(text: str, param: str) -> None:
    """Raise InvalidRequest for JSON that is nested too deep; what is not JSON is somebody else's to refuse."""
    try:
        level: list[Any] = [json.loads(text)]
    except ValueError:
        return
    except RecursionError:
        level = [None]
    else:
        for _ in range(MAX_SCHEMA_DEPTH):
            level = [inner for each in level for inner in _inside(each) if isinstance(inner, dict | list)]
    if level:
        raise InvalidRequest(
            f"arrays and objects in this may be nested up to {MAX_SCHEMA_DEPTH} levels deep", param=param
        )


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
