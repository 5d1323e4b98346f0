"""Functions and their calls: as the prompt describes them, and as they stand in answers; see tool_functions for their
form."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from autoglm.decoder.detokenizer import overlap
from autoglm.decoder.tool_functions import Marks, ToolFunction, is_single
from autoglm.fusion.prompt import PromptMessage, ToolCall
from autoglm.v1 import generation_pb2
from autoglm.v1.decoder_pb2 import DecoderServiceGenerateRequest
from autoglm.v1.generation_pb2 import FunctionCall, Tool

_NAME = re.compile(r"\s*([\w-]*)\s*")
_ARGUMENT = re.compile(r"<arg_key>([^<]*)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)
_UNENDED = re.compile(r"<arg_key>[^<]*</arg_key>\s*<arg_value>")
_to_json = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make one for each value


def description(tool: Tool) -> str:
    """Return how the prompt describes a tool: JSON as json.dumps writes it, with the keys in OpenAI's order."""
    function = {"name": tool.function.name}
    if tool.function.description:
        function["description"] = tool.function.description
    if tool.function.parameters:
        function["parameters"] = json.loads(tool.function.parameters)
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


def written(call: generation_pb2.ToolCall) -> ToolCall:
    """Return an earlier call as the model writes it.

    Its arguments may be anything that a model has written: those that are cut off are read as far as they go, those
    that are not a JSON object become one argument named `arguments`.
    """
    text = call.function.arguments
    value = _read(text) if text.strip() else None
    if value is None:
        return ToolCall(call.function.name, {})
    arguments = value if isinstance(value, dict) else {"arguments": text}
    return ToolCall(call.function.name, {key: _written(value) for key, value in arguments.items()})


def in_words(turn: PromptMessage) -> PromptMessage:
    """Return an earlier turn for a chat template without tools: its calls as text, a result as what the user says."""
    calls = "\n".join(f"{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})" for call in turn.calls)
    parts = (*turn.parts, calls) if calls else turn.parts
    return PromptMessage("user" if turn.role == "tool" else turn.role, parts)


def _read(text: str) -> object:
    """Return the JSON value in `text`, as much as there is of one that is cut off; `text` itself if it is not JSON."""
    try:
        return from_json(text)
    except ValueError as error:
        is_cut_off = str(error).startswith("EOF")
    try:
        return from_json(text, allow_partial="trailing-strings") if is_cut_off else text
    except ValueError:
        return text


class ToolCalls:
    """Takes the calls out of an answer as it comes; with `single` the answer is `over` after the first.

    White space around calls goes with them. What only looks like a call, or calls a function that was not offered,
    is text.
    """

    @classmethod
    def of(cls, message: DecoderServiceGenerateRequest, marks: Marks) -> "ToolCalls | None":
        """Return what looks for calls in the answer to a request; None for one that offers no tools."""
        functions = [ToolFunction.of(tool) for tool in message.tools]
        return cls(functions, is_single(message), marks) if functions else None

    def __init__(self, functions: Sequence[ToolFunction], single: bool, marks: Marks) -> None:
        self._functions = {function.name: function for function in functions}
        self._open, self._close = marks
        self._single = single
        self._held = ""
        self.made = 0

    @property
    def over(self) -> bool:
        """Return whether nothing may follow."""
        return self._single and self.made > 0

    def feed(self, text: str) -> tuple[str, list[generation_pb2.ToolCall]]:
        """Return the text and the calls that `text` completes."""
        self._held += text
        said, calls = "", []
        while (at := self._held.find(self._open)) >= 0 and self._held.find(self._close, at) >= 0:
            call, end = self._read(at)
            if end < 0:
                break
            if call is None:
                said += self._take(end)
                continue
            said += self._take(end)[:at].rstrip()
            calls.append(call)
            self.made += 1
            if self.over:
                self._held = ""
        free = at if at >= 0 else len(self._held) - overlap(self._held, self._open)
        return said + self._take(len(self._held[:free].rstrip())), calls

    def flush(self) -> str:
        """Return the text that was kept back for a call that did not come."""
        rest = self._take(len(self._held))
        return "" if self.made and rest.isspace() else rest

    def _read(self, start: int) -> tuple[generation_pb2.ToolCall | None, int]:
        """Return the call at `start` and its end: (None, end of the mark) if it is not a call, (None, -1) while more of
        it may come."""
        head = _NAME.match(self._held, start + len(self._open))
        assert head is not None  # it matches nothing at all, too
        function, at, arguments = self._functions.get(head[1]), head.end(), {}
        while argument := _ARGUMENT.match(self._held, at):
            at = argument.end()
            key = argument[1].strip()
            arguments[key] = function.value(key, argument[2]) if function else argument[2]
        if function and self._held.startswith(self._close, at):
            return _call(function.name, arguments), at + len(self._close)
        waits = _UNENDED.match(self._held, at) or self._held.find(self._close, at) < 0
        return None, -1 if waits else start + len(self._open)

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken


def _call(name: str, arguments: Mapping[str, Any]) -> generation_pb2.ToolCall:
    function = FunctionCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False))
    return generation_pb2.ToolCall(id=f"call_{secrets.token_hex(12)}", function=function)


def _written(value: object) -> str:
    return value if isinstance(value, str) else _to_json(value)
