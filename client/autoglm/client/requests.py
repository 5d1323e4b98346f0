"""Builds the protobuf requests from keywords, messages and files."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, ContentPart, Media
from autoglm.v1.embeddings_pb2 import EmbedRequest
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

    temperature: float  # in [0, 2]; 0 always takes the most likely token
    top_p: float  # the smallest set of tokens with this mass, in [0, 1]
    top_k: int  # only the k most likely tokens; 0 means all
    min_p: float  # drops tokens less likely than this share of the most likely one, in [0, 1]
    max_tokens: int  # maximum number of tokens to generate
    max_thinking_tokens: int  # maximum number of reasoning tokens
    stop: str | Sequence[str]  # ends the answer; at most four
    include_stop_str_in_output: bool  # whether what ends the answer is part of its text; default: no
    seed: int  # the same seed gives the same answer; may be negative
    presence_penalty: float  # in [-2, 2]
    frequency_penalty: float  # in [-2, 2]
    repetition_penalty: float  # in (0, 10]
    top_logprobs: int  # how many of the most likely tokens to return with each chosen one, 0 to 20
    logit_bias: Mapping[int, float]  # added to the logits of these token ids, each in [-100, 100]
    # The format of the answer; at most one of these.
    json_schema: str | Mapping[str, Any]
    json_schema_strict: bool  # refuse a schema that cannot be enforced in full
    regex: str
    choice: Sequence[str]
    grammar: str  # in the Lark dialect of llguidance


class Options(Sampling, total=False):
    """Everything that a question can have besides its text."""

    images: Sequence[File]  # sent with a question that is a text
    audio: Sequence[File]  # recordings sent with a question that is a text
    model: str  # default: the model of the server
    enable_thinking: bool  # whether the model reasons first; default: as the chat template says
    return_reasoning: bool  # whether reasoning is returned apart from the text


class EmbedOptions(TypedDict, total=False):
    """Everything that can be embedded besides texts, and how."""

    images: Sequence[File]  # their vectors come after those of the texts
    audio: Sequence[File]  # recordings; their vectors come last
    model: str  # default: the model of the server
    dimensions: int  # the number of elements that a vector must have


class Sent:
    """The hashes of the media that were sent to the mesh, an LRU of `MAX_REMEMBERED`."""

    def __init__(self) -> None:
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def media(self, file: File, whole: bool) -> Media:
        """Return `file` as a hash if its bytes were sent before, else (or with `whole`) as its bytes."""
        data = file if isinstance(file, bytes) else file.read_bytes()
        sha256 = hashlib.sha256(data).digest()
        known = sha256 in self._hashes
        self._remember(sha256)
        return Media(sha256=sha256) if known and not whole else Media(data=data)

    def _remember(self, sha256: bytes) -> None:
        # Each step is atomic: threads may share a client.
        self._hashes.pop(sha256, None)
        self._hashes[sha256] = None
        if len(self._hashes) > MAX_REMEMBERED:
            self._hashes.popitem(last=False)


def chat_request(question: str | Sequence[Message], options: Options, sent: Sent, whole: bool) -> ChatRequest:
    """Return the request of a question; raises ValueError for an unknown option, OSError for a file."""
    fields: dict[str, Any] = dict(options)
    images, audio = fields.pop("images", ()), fields.pop("audio", ())
    if isinstance(question, str):
        question = [Message("user", question, images, audio)]
    elif images or audio:
        raise ValueError("in a conversation, images and audio belong to the messages")
    chat = {name: fields.pop(name) for name in ("model", "enable_thinking", "return_reasoning") if name in fields}
    messages = [_message(message, sent, whole) for message in question]
    return ChatRequest(messages=messages, sampling=_sampling(fields), **chat)


def embed_request(texts: str | Sequence[str], options: EmbedOptions, sent: Sent, whole: bool) -> EmbedRequest:
    """Return the request of vectors; raises ValueError for an unknown option, OSError for a file."""
    fields: dict[str, Any] = dict(options)
    images, audio = fields.pop("images", ()), fields.pop("audio", ())
    parts = [ContentPart(text=text) for text in ([texts] if isinstance(texts, str) else texts)]
    parts += [ContentPart(image=sent.media(image, whole)) for image in images]
    parts += [ContentPart(audio=sent.media(recording, whole)) for recording in audio]
    return EmbedRequest(input=parts, **fields)


def transcribe_request(recording: File) -> TranscribeRequest:
    """Return the request of a transcription; raises OSError if the recording cannot be read."""
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
    if fields.get("seed", 0) < 0:
        fields["seed"] += 2**64
    return SamplingParams(**fields)
