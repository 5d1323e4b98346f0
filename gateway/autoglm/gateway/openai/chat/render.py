"""How an answer, a model and an error look to OpenAI's clients."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from google.protobuf.duration_pb2 import Duration

from autoglm.common.errors import MeshError
from autoglm.common.modalities import MODALITY_NAMES
from autoglm.gateway.conversation import MAX_CHOICES, Allowance
from autoglm.gateway.metrics import FINISH_NAMES
from autoglm.gateway.pipeline import Choice, Step, Summary
from autoglm.gateway.settings import Settings
from autoglm.v1.generation_pb2 import (
    CACHE_OUTCOME_LOCAL,
    CACHE_OUTCOME_MISS,
    CACHE_OUTCOME_REDIS,
    CACHE_OUTCOME_SHARED,
    LogprobEntry,
    Stages,
    TokenLogprob,
    ToolCall,
    Usage,
)
from autoglm.v1.model_pb2 import ModelCard

OUTCOMES: dict[int, str] = {
    CACHE_OUTCOME_MISS: "miss",
    CACHE_OUTCOME_LOCAL: "local",
    CACHE_OUTCOME_REDIS: "redis",
    CACHE_OUTCOME_SHARED: "shared",
}
LEAST_LOGPROB = -9999.0  # OpenAI's number for a probability of nothing; JSON has no infinity


def error_body(error: MeshError) -> dict[str, Any]:
    """Return OpenAI's error body."""
    return {"error": {"message": error.message, "type": error.code, "param": error.param, "code": error.code}}


def error_headers(error: MeshError) -> dict[str, str]:
    """Return the headers that go with an error."""
    headers = {} if error.retry_after is None else {"retry-after": str(math.ceil(error.retry_after))}
    return headers | ({"www-authenticate": "Bearer"} if error.http_status == 401 else {})


def allowance_headers(allowance: Allowance | None) -> list[tuple[bytes, bytes]]:
    """Return OpenAI's headers that tell a tenant what is left of its requests."""
    if allowance is None:
        return []
    return [
        (b"x-ratelimit-limit-requests", b"%d" % allowance.limit),
        (b"x-ratelimit-remaining-requests", b"%d" % allowance.remaining),
        (b"x-ratelimit-reset-requests", b"%.3fs" % allowance.reset),
    ]


class Answer:
    """The JSON of one answer, whole or in chunks. What does not change is rendered once."""

    end = b"data: [DONE]\n\n"

    def __init__(self, request_id: str, bundle: str, include_usage: bool = False) -> None:
        self._head = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": bundle}
        chunk = orjson.dumps({"object": "chat.completion.chunk", **self._head})
        self._prefix = b"data: " + chunk[:-1] + b',"choices":['
        self._suffix = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._include_usage = include_usage
        self._called: Counter[int] = Counter()  # functions, by choice

    def opening(self, n: int) -> bytes:
        """Return the chunks that say who speaks, one a choice."""
        delta = {"role": "assistant", "content": ""}
        return b"".join(self._chunk({"index": i, "delta": delta, "finish_reason": None}) for i in range(n))

    def chunk(self, step: Step) -> bytes:
        """Return the chunks of one step: what opens its calls, the step itself, and after the last step the usage if
        asked for."""
        delta: dict[str, Any] = {"content": step.text} if step.text else {}
        heads = b""
        if step.calls:
            heads, delta["tool_calls"] = self._calls(step)
        if step.reasoning:
            delta["reasoning_content"] = step.reasoning
        choice: dict[str, Any] = {"index": step.index, "delta": delta, "finish_reason": None}
        if step.logprobs:
            choice["logprobs"] = _logprobs(step.logprobs)
        if step.finish_reason:
            choice["finish_reason"] = FINISH_NAMES[step.finish_reason]
        return heads + (self._chunk(choice) if step.summary is None else self._closing(choice, step.summary))

    def failed(self, error: MeshError) -> bytes:
        """Return the SSE event that ends a stream which failed."""
        return b"event: error\ndata: " + orjson.dumps(error_body(error)) + b"\n\n"

    def body(self, choices: Sequence[Choice], summary: Summary) -> bytes:
        """Return the whole answer."""
        return orjson.dumps(
            {
                "object": "chat.completion",
                **self._head,
                "choices": [_choice(i, choice) for i, choice in enumerate(choices)],
                "usage": _usage(summary.usage),
                "autoglm": telemetry(summary),
            }
        )

    def _calls(self, step: Step) -> tuple[bytes, list[dict[str, Any]]]:
        """Return the chunk that opens the calls of a step, and the deltas with their arguments."""
        numbered = list(enumerate(step.calls, self._called[step.index]))
        self._called[step.index] += len(numbered)
        heads = [{"index": number, **_call(call, "")} for number, call in numbered]
        opening = {"index": step.index, "delta": {"tool_calls": heads}, "finish_reason": None}
        bodies = [{"index": n, "function": {"arguments": call.function.arguments}} for n, call in numbered]
        return self._chunk(opening), bodies

    def _chunk(self, choice: Mapping[str, Any]) -> bytes:
        return self._prefix + orjson.dumps(choice) + self._suffix

    def _closing(self, choice: Mapping[str, Any], summary: Summary) -> bytes:
        closing = b',"autoglm":' + orjson.dumps(telemetry(summary)) + b"}\n\n"
        usage = b',"usage":null' if self._include_usage else b""
        last = self._prefix + orjson.dumps(choice) + b"]" + usage + closing
        if not self._include_usage:
            return last
        return last + self._prefix + b'],"usage":' + orjson.dumps(_usage(summary.usage)) + closing


def server_timing(stages: Stages) -> str:
    """Return the Server-Timing header."""
    media = [f"encode;desc={MODALITY_NAMES[m.modality]};dur={_ms(m.encode)}" for m in stages.media]
    rest = [f"{name};dur={_ms(getattr(stages, name))}" for name in ("queue", "prefill", "decode", "total")]
    return ", ".join([f"fetch;dur={_ms(stages.fetch)}", *media, *rest])


def model_card(card: ModelCard, settings: Settings, created: int) -> dict[str, Any]:
    """Return OpenAI's model object with what is really behind it."""
    return {
        "id": card.id,
        "object": "model",
        "created": created,
        "owned_by": "autoglm",
        "bundle": card.bundle,
        "modalities": [MODALITY_NAMES[modality] for modality in card.modalities],
        "max_model_len": card.context_length,
        "limits": {
            "max_body_bytes": settings.max_body_bytes,
            "max_media_bytes": settings.max_media_bytes,
            "max_image_pixels": settings.max_image_pixels,
            "max_media_parts": settings.max_media_parts,
            "max_choices": MAX_CHOICES,
        },
    }


def _choice(index: int, choice: Choice) -> dict[str, Any]:
    content = None if choice.calls and not choice.text else choice.text
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if choice.calls:
        message["tool_calls"] = [_call(call, call.function.arguments) for call in choice.calls]
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(choice.logprobs) if choice.logprobs else None,
        "finish_reason": FINISH_NAMES[choice.finish_reason],
    }


def _call(call: ToolCall, arguments: str) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _logprobs(entries: Sequence[LogprobEntry]) -> dict[str, Any]:
    content = [{**_token(entry.chosen), "top_logprobs": [_token(top) for top in entry.top]} for entry in entries]
    return {"content": content, "refusal": None}


def _token(token: TokenLogprob) -> dict[str, Any]:
    logprob = max(token.logprob, LEAST_LOGPROB)
    return {"token": token.token, "logprob": logprob, "bytes": list(token.token_bytes)}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "audio_tokens": usage.audio_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def telemetry(summary: Summary) -> dict[str, Any]:
    """Return the `autoglm` object of an answer: its stages in milliseconds, and its gates."""
    stages = summary.stages
    media = [
        {"modality": MODALITY_NAMES[m.modality], "cache": OUTCOMES.get(m.cache), "encode": _ms(m.encode)}
        for m in stages.media
    ]
    times = {name: _ms(getattr(stages, name)) for name in ("queue", "fetch", "prefill", "decode", "total")}
    gates = {MODALITY_NAMES[gate.modality]: round(gate.mean, 4) for gate in summary.gates}
    return {"stages": {**times, "media": media}, "gates": gates}


def _ms(duration: Duration) -> float:
    return round(duration.ToNanoseconds() / 1e6, 3)
