"""What a JSON Schema cannot say of a request: made-up ones are completed here so that they reach the model.

They get a model that exists, media that can be read, few tokens, results that belong to calls, and functions with names
of their own. Everything else stays as it was made up.
"""

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .asking import MODEL

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WAV = (EXAMPLES / "instruction.wav").read_bytes()
RECORDING = base64.b64encode(WAV).decode()
PICTURE = "data:image/png;base64," + base64.b64encode((EXAMPLES / "home.png").read_bytes()).decode()
MEDIA: dict[str, dict[str, Any]] = {
    "image_url": {"image_url": {"url": PICTURE}},
    "input_image": {"image_url": PICTURE},
    "audio_url": {"audio_url": {"url": "data:audio/wav;base64," + RECORDING}},
    "input_audio": {"input_audio": {"data": RECORDING}},
}
FUNCTION = {"name": "f", "arguments": "{}"}
# Fields of a transcription's form, and the response formats that they go with.
GO_WITH = {"include[]": ("json",), "timestamp_granularities[]": ("verbose_json",), "stream": ("json", "text")}
MAX_TOKENS, MAX_CHOICES = 4, 2


def plausible(body: Any) -> Any:
    """Return the body of a request so that a server can answer it, if nothing else is wrong with it."""
    if not isinstance(body, dict):
        return body
    made = body | {"model": MODEL} | _limits(body)
    if "file" in body:
        wanted = body.get("response_format", "json")
        made = {name: value for name, value in made.items() if wanted in GO_WITH.get(name, (wanted,))} | {"file": WAV}
    if _are_objects(body.get("messages")):
        made["messages"] = list(_messages(body["messages"]))
    if _are_objects(body.get("input")):
        made["input"] = list(_items(body["input"]))
    if _are_objects(body.get("tools")):
        made["tools"] = [_tool(tool, f"f{i}") for i, tool in enumerate(body["tools"])]
    if isinstance(body.get("tool_choice"), dict) or not body.get("tools"):
        made.pop("tool_choice", None)
    return made


def embeddable(body: Any) -> Any:
    """Return the body of a request for embeddings so that it has exactly one part, and vectors of the model's width."""
    if not isinstance(body, dict):
        return body
    made = {name: value for name, value in body.items() if name != "dimensions"} | {"model": MODEL}
    if body.get("messages") and _are_objects(body["messages"]):
        contents = [_content(message.get("content"), "user") for message in body["messages"]]
        media = (part for content in contents if _are_objects(content) for part in content if part.get("type") in MEDIA)
        made["messages"] = [{"role": "user", "content": [next(media, {"type": "text", "text": "hi"})]}]
    return made


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _limits(body: dict[str, Any]) -> dict[str, Any]:
    """Return limits: an answer to made-up words may not end by itself."""
    names = [name for name in ("max_tokens", "max_completion_tokens", "max_output_tokens") if body.get(name)]
    limits: dict[str, Any] = dict.fromkeys(names, MAX_TOKENS)
    if not names and "file" not in body:
        limits["max_tokens" if "messages" in body else "max_output_tokens"] = MAX_TOKENS
    if isinstance(body.get("n"), int):
        limits["n"] = min(body["n"], MAX_CHOICES)
    return limits


def _messages(given: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a chat's messages: media in the user's, and before each result its call."""
    for number, message in enumerate(given):
        kept = {name: value for name, value in message.items() if name not in ("tool_calls", "function_call", "audio")}
        kept |= {"content": _content(message.get("content"), message.get("role"))}
        if message.get("role") in ("tool", "function"):
            kept |= {"role": "tool", "tool_call_id": f"call_{number}"}
            call = {"id": f"call_{number}", "type": "function", "function": FUNCTION}
            yield {"role": "assistant", "tool_calls": [call]}
        yield kept


def _items(given: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the messages and results of a response's input, before each result its call, and a question at the end."""
    for number, item in enumerate(given):
        if item.get("type", "message") == "message":
            yield item | {"content": _content(item.get("content"), item.get("role"))}
        elif item["type"] == "function_call_output":
            yield {"type": "function_call", "call_id": f"call_{number}", **FUNCTION}
            yield item | {"call_id": f"call_{number}", "output": _content(item.get("output"), "tool")}
    yield {"role": "user", "content": "hi"}


def _content(content: Any, role: Any) -> Any:
    if not _are_objects(content):
        return content
    return [
        part | MEDIA.get(part.get("type", ""), {})
        for part in content
        if role == "user" or part.get("type") not in MEDIA
    ]


def _tool(tool: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a tool with another name, and parameters that are an object's."""
    for field in ("function", "custom"):
        if isinstance(tool.get(field), dict):
            return tool | {field: _tool(tool[field], name)}
    return tool | {"name": name} | ({"parameters": {"type": "object"}} if tool.get("parameters") else {})
