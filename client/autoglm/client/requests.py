"""From what a program says to what goes over the wire."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, ContentPart, Media
from autoglm.v1.generation_pb2 import Role, SamplingParams, TextChoice
from autoglm.v1.transcription_pb2 import TranscribeRequest

File = bytes | Path

MAX_REMEMBERED = 1024  # hashes of media


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. Images and recordings come before the text, and only in turns of the user.

    >>> Message("user", "Is there a game on this screen?", images=[Path("home.png")])
    """

    role: Literal["system", "user", "assistant"]
    text: str = ""
    images: Sequence[File] = ()
    audio: Sequence[File] = ()


class Sampling(TypedDict, total=False):
    """How tokens are chosen, as SamplingParams in generation.proto; what is left out takes the server's default."""

    temperature: float  # in [0, 2]; 0 always takes the likeliest token
    top_p: float  # the smallest set of tokens with this mass, in (0, 1]
    top_k: int  # only the k likeliest tokens; 0 means all
    min_p: float  # drops tokens less likely than this share of the likeliest one, in [0, 1]
    max_tokens: int  # most tokens to generate
    max_thinking_tokens: int  # most tokens of reasoning
    stop: str | Sequence[str]  # ends the answer and is no part of it; four at most
    seed: int  # the same seed gives the same answer
    presence_penalty: float  # in [-2, 2]
    frequency_penalty: float  # in [-2, 2]
    repetition_penalty: float  # in (0, 10]
    top_logprobs: int  # how many of the likeliest tokens to name beside each chosen one, 0 to 20
    logit_bias: Mapping[int, float]  # added to the logits of these token ids, each in [-100, 100]
    # What the answer has to look like; one of these.
    json_schema: str | Mapping[str, Any]
    regex: str
    choice: Sequence[str]
    grammar: str  # in the Lark dialect of llguidance


class Options(Sampling, total=False):
    """What a question may say beside its words."""

    images: Sequence[File]  # asked about in a question that is a text
    audio: Sequence[File]  # recordings that belong to a question that is a text
    model: str  # the server's own when left out
    enable_thinking: bool  # whether the model reasons first; the chat template decides when left out
    return_reasoning: bool  # whether reasoning comes apart instead of inside the text


class Sent:
    """The hashes of the media that went to the mesh, the most recent ones."""

    def __init__(self) -> None:
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def media(self, file: File, whole: bool) -> Media:
        """Return `file` as its bytes or, when they went out before and `whole` is not asked for, as their hash."""
        data = file if isinstance(file, bytes) else file.read_bytes()
        sha256 = hashlib.sha256(data).digest()
        known = sha256 in self._hashes
        self._remember(sha256)
        return Media(sha256=sha256) if known and not whole else Media(data=data)

    def _remember(self, sha256: bytes) -> None:
        # Each step is atomic, as threads may share a client.
        self._hashes.pop(sha256, None)
        self._hashes[sha256] = None
        if len(self._hashes) > MAX_REMEMBERED:
            self._hashes.popitem(last=False)


def chat_request(question: str | Sequence[Message], options: Options, sent: Sent, whole: bool) -> ChatRequest:
    """Return a question as the mesh reads it; raises ValueError for an option that there is not, OSError for a file."""
    fields: dict[str, Any] = dict(options)
    images, audio = fields.pop("images", ()), fields.pop("audio", ())
    if isinstance(question, str):
        question = [Message("user", question, images, audio)]
    elif images or audio:
        raise ValueError("in a conversation images and audio belong to its messages")
    chat = {name: fields.pop(name) for name in ("model", "enable_thinking", "return_reasoning") if name in fields}
    messages = [_message(message, sent, whole) for message in question]
    return ChatRequest(messages=messages, sampling=_sampling(fields), **chat)


def transcribe_request(recording: File) -> TranscribeRequest:
    """Return a recording as the mesh reads it; raises OSError when it cannot be read."""
    data = recording if isinstance(recording, bytes) else recording.read_bytes()
    return TranscribeRequest(audio=Media(data=data))


def _message(message: Message, sent: Sent, whole: bool) -> ChatMessage:
    parts = [ContentPart(image=sent.media(image, whole)) for image in message.images]
    parts += [ContentPart(audio=sent.media(recording, whole)) for recording in message.audio]
    if message.text:
        parts.append(ContentPart(text=message.text))
    return ChatMessage(role=Role.Value(f"ROLE_{message.role.upper()}"), parts=parts)


def _sampling(fields: dict[str, Any]) -> SamplingParams:
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    if isinstance(fields.get("json_schema"), Mapping):
        fields["json_schema"] = json.dumps(fields["json_schema"])
    if "choice" in fields:
        fields["choice"] = TextChoice(texts=fields["choice"])
    return SamplingParams(**fields)
