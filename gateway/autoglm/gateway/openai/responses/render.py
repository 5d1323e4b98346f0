"""How an answer looks in OpenAI's Responses API: whole, or as its events."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from autoglm.common.errors import MeshError
from autoglm.gateway.openai.chat.render import error_body, telemetry
from autoglm.gateway.openai.responses.request import ResponseRequest
from autoglm.gateway.pipeline import Choice, Step, Summary
from autoglm.v1.generation_pb2 import FINISH_REASON_LENGTH, FinishReason, ToolCall, Usage

Kind = Literal["reasoning", "message"]
Status = Literal["in_progress", "completed", "incomplete", "failed"]


@dataclass(slots=True)
class TextItem:
    """What the model thought or said, as far as it has come."""

    kind: Kind
    id: str
    text: str = ""
    status: Status = "in_progress"

    @property
    def text_event(self) -> str:
        """The name that the events of its text begin with."""
        return "response.reasoning_text" if self.kind == "reasoning" else "response.output_text"

    def part(self, text: str) -> dict[str, Any]:
        """Return its only part of content, holding `text`."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def body(self) -> dict[str, Any]:
        """Return the item; without its content while it is in progress."""
        content = [] if self.status == "in_progress" else [self.part(self.text)]
        more: dict[str, Any] = {"summary": []} if self.kind == "reasoning" else {"role": "assistant"}
        return {"id": self.id, "type": self.kind, "status": self.status, "content": content, **more}


@dataclass(slots=True)
class CallItem:
    """A function that the model calls."""

    id: str
    call: ToolCall
    status: Status = "in_progress"

    def body(self) -> dict[str, Any]:
        """Return the item; without the arguments while it is in progress."""
        return {
            "id": self.id,
            "type": "function_call",
            "status": self.status,
            "call_id": self.call.id,
            "name": self.call.function.name,
            "arguments": "" if self.status == "in_progress" else self.call.function.arguments,
        }


class ResponseAnswer:
    """The JSON of one answer, whole or as events. Items stand for what was generated: none for no text."""

    end = b""

    def __init__(self, request_id: str, model: str, asked: ResponseRequest) -> None:
        self._id, self._items, self._sequence = request_id, list[TextItem | CallItem](), 0
        self._open: TextItem | None = None  # the last item, while it can grow
        choice = asked.tool_choice or "auto"
        self._head = {
            "id": f"resp_{request_id}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": asked.reasoning and asked.reasoning.effort, "summary": None},
            "store": False,
            "background": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": asked.format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump() for tool in asked.tools or ()],
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
        }

    def opening(self, n: int) -> bytes:
        """Return the events before the first step; `n` is always 1 here."""
        response = self._response("in_progress")
        return b"".join(self._event(f"response.{name}", response=response) for name in ("created", "in_progress"))

    def chunk(self, step: Step) -> bytes:
        """Return the events of one step, and after the last step those that end the response."""
        events = self._take(step)
        if step.summary is None:
            return events
        status = _status(step.finish_reason)
        events += self._close(status)
        return events + self._event(f"response.{status}", response=self._response(status, step.summary))

    def body(self, choices: Sequence[Choice], summary: Summary) -> bytes:
        """Return the whole answer."""
        (choice,) = choices
        status = _status(choice.finish_reason)
        self._take(Step(0, choice.text, choice.reasoning, choice.calls))
        self._close(status)
        return orjson.dumps(self._response(status, summary))

    def failed(self, error: MeshError) -> bytes:
        """Return the events that end a stream which failed."""
        if self._open is not None:
            self._open.status = "incomplete"
        body = error_body(error)["error"]
        response = self._response("failed")
        response["error"] = {"code": error.code, "message": error.message}
        return self._event("response.failed", response=response) + self._event("error", **body, error=body)

    def _take(self, step: Step) -> bytes:
        """Return the events of what a step adds."""
        events = self._grow("reasoning", step.reasoning) + self._grow("message", step.text)
        return events + b"".join(self._call(call) for call in step.calls)

    def _grow(self, kind: Kind, delta: str) -> bytes:
        if not delta:
            return b""
        item, events = self._open, b""
        if item is None or item.kind != kind:
            item = TextItem(kind, self._new_id("rs" if kind == "reasoning" else "msg"))
            events = self._close("completed") + self._add(item)
            events += self._item_event("response.content_part.added", content_index=0, part=item.part(""))
            self._open = item
        item.text += delta
        return events + self._item_event(f"{item.text_event}.delta", content_index=0, delta=delta, **_logprobs(kind))

    def _close(self, status: Status) -> bytes:
        """Return the events that end the item that can grow, if one can."""
        item, self._open = self._open, None
        if item is None:
            return b""
        item.status = status
        return (
            self._item_event(f"{item.text_event}.done", content_index=0, text=item.text, **_logprobs(item.kind))
            + self._item_event("response.content_part.done", content_index=0, part=item.part(item.text))
            + self._event("response.output_item.done", output_index=self._last, item=item.body())
        )

    def _call(self, call: ToolCall) -> bytes:
        """Return the events of a call, which comes whole."""
        arguments = call.function.arguments
        item = CallItem(self._new_id("fc"), call)
        events = self._close("completed") + self._add(item)
        events += self._item_event("response.function_call_arguments.delta", delta=arguments)
        events += self._item_event("response.function_call_arguments.done", arguments=arguments)
        item.status = "completed"
        return events + self._event("response.output_item.done", output_index=self._last, item=item.body())

    def _add(self, item: TextItem | CallItem) -> bytes:
        self._items.append(item)
        return self._event("response.output_item.added", output_index=self._last, item=item.body())

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}_{self._id}_{len(self._items)}"

    @property
    def _last(self) -> int:
        return len(self._items) - 1

    def _item_event(self, name: str, **fields: Any) -> bytes:
        """Return an event inside the last item."""
        return self._event(name, item_id=self._items[-1].id, output_index=self._last, **fields)

    def _event(self, name: str, **fields: Any) -> bytes:
        data = orjson.dumps(fields | {"type": name, "sequence_number": self._sequence})
        self._sequence += 1
        return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"

    def _response(self, status: Status, summary: Summary | None = None) -> dict[str, Any]:
        more = {} if summary is None else {"autoglm": telemetry(summary)}
        return {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [item.body() for item in self._items],
            "usage": None if summary is None else _usage(summary.usage),
            **more,
        }


def _status(reason: FinishReason.ValueType) -> Status:
    return "incomplete" if reason == FINISH_REASON_LENGTH else "completed"


def _logprobs(kind: Kind) -> dict[str, Any]:
    """Return the list that OpenAI's events of a message always have."""
    return {"logprobs": []} if kind == "message" else {}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
