"""How a response looks to OpenAI's clients: whole, or as events."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from autoglm.common.errors import MeshError
from autoglm.gateway.openai.errors import error_body, response_error_code
from autoglm.gateway.openai.logprobs import rendered, take
from autoglm.gateway.openai.telemetry import telemetry
from autoglm.gateway.pipeline import Choice, Step, Summary
from autoglm.v1.generation_pb2 import FINISH_REASON_LENGTH, FinishReason, LogprobEntry, ToolCall, Usage

Kind = Literal["reasoning", "message"]
Status = Literal["in_progress", "completed", "incomplete", "failed"]


@dataclass(slots=True)
class TextItem:
    """Reasoning or text of the model, as far as it is generated."""

    kind: Kind
    id: str
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    status: Status = "in_progress"

    @property
    def text_event(self) -> str:
        """The name that the events of its text begin with."""
        return "response.reasoning_text" if self.kind == "reasoning" else "response.output_text"

    def add(self, delta: str, logprobs: Sequence[LogprobEntry]) -> dict[str, Any]:
        """Add `delta`, with the log probabilities of its tokens; return the fields of the event that says so."""
        new = rendered(logprobs)
        self.text += delta
        self.logprobs += new
        return {"delta": delta, **self._with(new)}

    def done(self) -> dict[str, Any]:
        """Return the fields of the event that closes its text."""
        return {"text": self.text, **self._with(self.logprobs)}

    def empty_part(self) -> dict[str, Any]:
        """Return its only content part as it is before the first delta."""
        return self._part("", [])

    def part(self) -> dict[str, Any]:
        """Return its only content part."""
        return self._part(self.text, self.logprobs)

    def _part(self, text: str, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _with(self, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the log probabilities that events of a message always have, and those of reasoning never."""
        return {"logprobs": logprobs} if self.kind == "message" else {}

    def body(self) -> dict[str, Any]:
        """Return the item; without its content while it is in progress."""
        content = [] if self.status == "in_progress" else [self.part()]
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


class ResponsesRenderer:
    """The JSON of one response, whole or as events. Each item has something generated in it; empty text has none.

    `echo` holds the fields of the request that OpenAI's responses repeat.
    """

    end = b""  # the last step's events end the stream

    def __init__(self, request_id: str, model: str, echo: Mapping[str, Any]) -> None:
        self._id, self._items, self._sequence = request_id, list[TextItem | CallItem](), 0
        self._open: TextItem | None = None  # the last item, while more text may be added to it
        self._logprobs = list[LogprobEntry]()  # of tokens whose text has not come yet
        self._head = {
            "id": f"resp_{request_id}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "previous_response_id": None,
            "store": False,
            "background": False,
            "truncation": "disabled",
            **echo,
        }

    def opening(self, n: int) -> bytes:
        """Return the events before the first step; `n` is always 1 here."""
        response = self._response("in_progress")
        return b"".join(self._event(f"response.{name}", response=response) for name in ("created", "in_progress"))

    def chunk(self, step: Step) -> bytes:
        """Return the events of one step, and with the last step those that end the response."""
        events = self._add_step(step)
        if step.summary is None:
            return events
        status = _status(step.finish_reason)
        events += self._close(status)
        return events + self._event(f"response.{status}", response=self._response(status, step.summary))

    def body(self, choices: Sequence[Choice], summary: Summary) -> bytes:
        """Return the whole answer."""
        (choice,) = choices
        status = _status(choice.finish_reason)
        logprobs = choice.logprobs[choice.num_before_text :]
        self._add_step(Step(0, choice.text, choice.reasoning, choice.calls, logprobs))
        self._close(status)
        return orjson.dumps(self._response(status, summary))

    def failed(self, error: MeshError) -> bytes:
        """Return the events that end a failed stream."""
        if self._open is not None:
            self._open.status = "incomplete"
        body = error_body(error)["error"]
        response = self._response("failed")
        details = {name: body[name] for name in ("message", "type", "param")}
        response["error"] = {"code": response_error_code(error), **details}
        return self._event("response.failed", response=response) + self._event("error", **body, error=body)

    def _add_step(self, step: Step) -> bytes:
        """Add what a step generated; return its events."""
        self._logprobs += step.logprobs
        events = self._add_text("reasoning", step.reasoning) + self._add_text("message", step.text)
        if step.calls or (step.reasoning and not step.text):
            self._logprobs.clear()  # what is left is of calls, or of the reasoning
        return events + b"".join(self._add_call(call) for call in step.calls)

    def _add_text(self, kind: Kind, delta: str) -> bytes:
        if not delta:
            return b""
        item, events = self._open, b""
        if item is None or item.kind != kind:
            item = TextItem(kind, self._new_id("rs" if kind == "reasoning" else "msg"))
            events = self._close("completed") + self._add_item(item)
            events += self._item_event("response.content_part.added", content_index=0, part=item.empty_part())
            self._open = item
        logprobs = take(self._logprobs, delta, begins=not item.text) if kind == "message" else ()
        return events + self._item_event(f"{item.text_event}.delta", content_index=0, **item.add(delta, logprobs))

    def _close(self, status: Status) -> bytes:
        """End the open item, if there is one; return its events."""
        item, self._open = self._open, None
        if item is None:
            return b""
        item.status = status
        return (
            self._item_event(f"{item.text_event}.done", content_index=0, **item.done())
            + self._item_event("response.content_part.done", content_index=0, part=item.part())
            + self._event("response.output_item.done", output_index=self._last, item=item.body())
        )

    def _add_call(self, call: ToolCall) -> bytes:
        """Add a tool call, which comes whole; return its events."""
        arguments = call.function.arguments
        item = CallItem(self._new_id("fc"), call)
        events = self._close("completed") + self._add_item(item)
        events += self._item_event("response.function_call_arguments.delta", delta=arguments)
        events += self._item_event("response.function_call_arguments.done", arguments=arguments)
        item.status = "completed"
        return events + self._event("response.output_item.done", output_index=self._last, item=item.body())

    def _add_item(self, item: TextItem | CallItem) -> bytes:
        self._items.append(item)
        return self._event("response.output_item.added", output_index=self._last, item=item.body())

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}_{self._id}_{len(self._items)}"

    @property
    def _last(self) -> int:
        return len(self._items) - 1

    def _item_event(self, name: str, **fields: Any) -> bytes:
        """Return an event about the last item."""
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


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
