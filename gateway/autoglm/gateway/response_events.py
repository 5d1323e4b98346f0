"""How an answer looks in OpenAI's Responses API: whole, or as its events."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from autoglm.common.errors import MeshError
from autoglm.gateway.pipeline import Choice, Step, Summary
from autoglm.gateway.render import error_body, telemetry
from autoglm.gateway.responses import ResponseRequest
from autoglm.v1.generation_pb2 import FINISH_REASON_LENGTH, FinishReason, Usage

Kind = Literal["reasoning", "message"]
Status = Literal["in_progress", "completed", "incomplete", "failed"]


@dataclass(slots=True)
class Item:
    """One item of the output, as far as it has come."""

    kind: Kind
    id: str
    text: str = ""

    @property
    def text_event(self) -> str:
        """The name that the events of its text begin with."""
        return "response.reasoning_text" if self.kind == "reasoning" else "response.output_text"

    def part(self, text: str) -> dict[str, Any]:
        """Return its only part of content, holding `text`."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def body(self, status: Status) -> dict[str, Any]:
        """Return the item; without its content while it is in progress."""
        content = [] if status == "in_progress" else [self.part(self.text)]
        more: dict[str, Any] = {"summary": []} if self.kind == "reasoning" else {"role": "assistant"}
        return {"id": self.id, "type": self.kind, "status": status, "content": content, **more}


class ResponseAnswer:
    """The JSON of one answer, whole or as events. Items stand for what was generated: none for no text."""

    end = b""

    def __init__(self, request_id: str, model: str, asked: ResponseRequest) -> None:
        self._id, self._items, self._sequence = request_id, list[Item](), 0
        self._head = {
            "id": f"resp_{request_id}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": asked.reasoning and asked.reasoning.effort, "summary": None},
            "store": False,
            "background": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": asked.format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
        }

    def opening(self, n: int) -> bytes:
        """Return the events before the first step; `n` is always 1 here."""
        response = self._response("in_progress")
        return b"".join(self._event(f"response.{name}", response=response) for name in ("created", "in_progress"))

    def chunk(self, step: Step) -> bytes:
        """Return the events of one step, and after the last step those that end the response."""
        events = self._grow("reasoning", step.reasoning) + self._grow("message", step.text)
        if step.summary is None:
            return events
        status = _status(step.finish_reason)
        if self._items:
            events += self._done(status)
        response = self._response(status, self._output(status), step.summary)
        return events + self._event(f"response.{status}", response=response)

    def body(self, choices: Sequence[Choice], summary: Summary) -> bytes:
        """Return the whole answer."""
        (choice,) = choices
        status = _status(choice.finish_reason)
        if choice.reasoning:
            self._add("reasoning", choice.reasoning)
        if choice.text:
            self._add("message", choice.text)
        return orjson.dumps(self._response(status, self._output(status), summary))

    def failed(self, error: MeshError) -> bytes:
        """Return the events that end a stream which failed."""
        body = error_body(error)["error"]
        response = self._response("failed", self._output("incomplete"))
        response["error"] = {"code": error.code, "message": error.message}
        return self._event("response.failed", response=response) + self._event("error", **body, error=body)

    def _grow(self, kind: Kind, delta: str) -> bytes:
        if not delta:
            return b""
        events = b""
        if not self._items or self._items[-1].kind != kind:
            events = self._done("completed") if self._items else b""
            item = self._add(kind, "")
            events += self._event("response.output_item.added", output_index=self._last, item=item.body("in_progress"))
            events += self._part_event("response.content_part.added", part=item.part(""))
        item = self._items[-1]
        item.text += delta
        return events + self._part_event(f"{item.text_event}.delta", delta=delta, **_logprobs(kind))

    def _add(self, kind: Kind, text: str) -> Item:
        item = Item(kind, f"{'rs' if kind == 'reasoning' else 'msg'}_{self._id}", text)
        self._items.append(item)
        return item

    def _done(self, status: Status) -> bytes:
        """Return the events that end the last item."""
        item = self._items[-1]
        return (
            self._part_event(f"{item.text_event}.done", text=item.text, **_logprobs(item.kind))
            + self._part_event("response.content_part.done", part=item.part(item.text))
            + self._event("response.output_item.done", output_index=self._last, item=item.body(status))
        )

    @property
    def _last(self) -> int:
        return len(self._items) - 1

    def _part_event(self, name: str, **fields: Any) -> bytes:
        place = {"item_id": self._items[-1].id, "output_index": self._last, "content_index": 0}
        return self._event(name, **place, **fields)

    def _event(self, name: str, **fields: Any) -> bytes:
        data = orjson.dumps(fields | {"type": name, "sequence_number": self._sequence})
        self._sequence += 1
        return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"

    def _output(self, status: Status) -> list[dict[str, Any]]:
        """Return the items; only the last can be unfinished."""
        return [item.body("completed") for item in self._items[:-1]] + [item.body(status) for item in self._items[-1:]]

    def _response(
        self, status: Status, output: Sequence[dict[str, Any]] = (), summary: Summary | None = None
    ) -> dict[str, Any]:
        more = {} if summary is None else {"autoglm": telemetry(summary)}
        return {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": output,
            "usage": None if summary is None else _usage(summary.usage),
            **more,
        }


def _status(reason: FinishReason) -> Status:
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
