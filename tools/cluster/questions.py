"""What the clients ask, each kind with its share: text, pictures, speech and streams; some bad, some cancelled."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from autoglm.bench.smoke.workloads import wav
from autoglm.cli.api import audio_bytes_part, image_bytes_part

Way = Literal["chat", "chat stream", "responses", "transcription", "embeddings", "models"]
Api = Literal["http", "grpc"]
OK, CANCELLED = "ok", "cancelled"
MODEL = "autoglm-phone-9b"
LONG = " ".join(map(str, range(1, 60)))  # an answer of some seconds, known beforehand
SHORT, LONGER = 8, 24  # tokens
KNOWN_PICTURES = 4
METHODS: Mapping[tuple[Api, Way], str] = {
    ("http", "chat"): "/v1/chat/completions",
    ("http", "chat stream"): "/v1/chat/completions",
    ("http", "responses"): "/v1/responses",
    ("http", "transcription"): "/v1/audio/transcriptions",
    ("http", "embeddings"): "/v1/embeddings",
    ("http", "models"): "/v1/models",
    ("grpc", "chat"): "ChatService/Complete",
    ("grpc", "chat stream"): "ChatService/StreamComplete",
    ("grpc", "transcription"): "TranscriptionService/Transcribe",
    ("grpc", "embeddings"): "EmbeddingService/Embed",
}


@dataclass(frozen=True, slots=True)
class QuestionKind:
    """A kind of question: how it is asked, how often among a hundred, and what its client should see."""

    name: str
    api: Api
    way: Way
    share: int
    media: Literal["", "picture", "known picture", "speech", "broken picture"] = ""
    long: bool = False
    expected: str = OK
    model: str = MODEL
    cancel: bool = False  # after the first token

    @property
    def method(self) -> str:
        """The label `method` of autoglm_requests_total."""
        return METHODS[self.api, self.way]


KINDS: Sequence[QuestionKind] = (
    QuestionKind("text", "http", "chat", 12),
    QuestionKind("text", "grpc", "chat", 8),
    QuestionKind("text, streamed", "http", "chat stream", 8),
    QuestionKind("text, streamed", "grpc", "chat stream", 6),
    QuestionKind("long stream", "http", "chat stream", 5, long=True),
    QuestionKind("long stream", "grpc", "chat stream", 3, long=True),
    QuestionKind("response", "http", "responses", 6),
    QuestionKind("embedding", "http", "embeddings", 4),
    QuestionKind("models", "http", "models", 3),
    QuestionKind("picture", "http", "chat", 8, media="picture"),
    QuestionKind("picture", "grpc", "chat", 5, media="picture"),
    QuestionKind("known picture", "http", "chat stream", 7, media="known picture"),
    QuestionKind("speech", "http", "chat", 5, media="speech"),
    QuestionKind("speech", "grpc", "chat", 3, media="speech"),
    QuestionKind("transcription", "http", "transcription", 3, media="speech"),
    QuestionKind("transcription", "grpc", "transcription", 2, media="speech"),
    QuestionKind("bad: no such model", "http", "chat", 2, model="gpt-0", expected="not_found"),
    QuestionKind("bad: no picture", "http", "chat", 2, media="broken picture", expected="unsupported_media"),
    QuestionKind("bad: no picture", "grpc", "chat", 2, media="broken picture", expected="unsupported_media"),
    QuestionKind("cancelled", "http", "chat stream", 3, long=True, expected=CANCELLED, cancel=True),
    QuestionKind("cancelled", "grpc", "chat stream", 3, long=True, expected=CANCELLED, cancel=True),
)


def media(kind: QuestionKind, drawn: np.random.Generator) -> bytes:
    """Return the file that a question has; none for a text."""
    match kind.media:
        case "picture":
            return picture(drawn)
        case "known picture":
            return picture(np.random.default_rng(int(drawn.integers(KNOWN_PICTURES))))
        case "speech":
            return wav(drawn.normal(0, 0.1, 16000).astype(np.float32), 16000)
        case "broken picture":
            return b"\x89PNG\r\n\x1a\n" + drawn.bytes(64)
    return b""


def picture(drawn: np.random.Generator) -> bytes:
    """Return a PNG of noise."""
    file = io.BytesIO()
    Image.fromarray(drawn.integers(0, 256, (64, 32, 3), np.uint8)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def content(kind: QuestionKind, file: bytes) -> list[dict[str, Any]]:
    """Return the content of a message over HTTP."""
    parts = []
    if file:
        parts = [audio_bytes_part(file) if kind.media == "speech" else image_bytes_part(file)]
    return [*parts, {"type": "text", "text": "What is this?" if file else "你是谁?"}]
