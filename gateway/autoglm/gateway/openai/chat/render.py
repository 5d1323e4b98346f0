"""How a chat completion looks to OpenAI's clients: whole, or in chunks."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from autoglm.common.errors import MeshError
from autoglm.gateway.metrics import FINISH_NAMES
from autoglm.gateway.openai.errors import error_body
from autoglm.gateway.openai.logprobs import rendered
from autoglm.gateway.openai.telemetry import telemetry
from autoglm.gateway.pipeline import Choice, Step, Summary
from autoglm.v1.generation_pb2 import LogprobEntry, ToolCall, Usage


class ChatRenderer:
    """The JSON of one chat completion, whole or in chunks. The part that all chunks share is rendered once."""

    end = b"data: [DONE]\n\n"

    def __init__(
        self, request_id: str, model: str, include_usage: bool = False, service_tier: str | None = None
    ) -> None:
        self._head = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": model}
        self._head |= {"service_tier": "default"} if service_tier else {}
        chunk = orjson.dumps({"object": "chat.completion.chunk", **self._head})
        self._prefix = b"data: " + chunk[:-1] + b',"choices":['
        self._suffix = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._include_usage = include_usage
        self._called: Counter[int] = Counter()  # tool calls so far, by choice

    def opening(self, n: int) -> bytes:
        """Return the chunks with the assistant's role, one for each choice."""
        delta = {"role": "assistant", "content": ""}
        return b"".join(self._chunk({"index": i, "delta": delta, "finish_reason": None}) for i in range(n))

    def chunk(self, step: Step) -> bytes:
        """Return the chunks of one step: one that opens its tool calls, the step itself, and after the last step the
        usage if the client asked for it."""
        delta: dict[str, Any] = {"content": step.text} if step.text else {}
        heads = b""
        if step.calls:
            heads, delta["tool_calls"] = self._calls(step)
        delta |= _reasoning(step.reasoning)
        choice: dict[str, Any] = {"index": step.index, "delta": delta, "finish_reason": None}
        if step.logprobs:
            choice["logprobs"] = _logprobs(step.logprobs)
        if step.finish_reason:
            choice["finish_reason"] = FINISH_NAMES[step.finish_reason]
        return heads + (self._chunk(choice) if step.summary is None else self._closing(choice, step.summary))

    def failed(self, error: MeshError) -> bytes:
        """Return the SSE event that ends a failed stream."""
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
        """Return the chunk that opens the tool calls of a step, and the deltas with their arguments."""
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


def _choice(index: int, choice: Choice) -> dict[str, Any]:
    content = None if choice.calls and not choice.text else choice.text
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, **_reasoning(choice.reasoning)}
    if choice.calls:
        message["tool_calls"] = [_call(call, call.function.arguments) for call in choice.calls]
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(choice.logprobs) if choice.logprobs else None,
        "finish_reason": FINISH_NAMES[choice.finish_reason],
    }


def _call(call: ToolCall, arguments: str) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _logprobs(entries: Sequence[LogprobEntry]) -> dict[str, Any]:
    return {"content": rendered(entries), "refusal": None}


def _reasoning(text: str) -> dict[str, str]:
    """Return reasoning under both names: the one that most clients read, and the newer one of vLLM and OpenRouter."""
    return {"reasoning_content": text, "reasoning": text} if text else {}


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
