"""POST /v1/audio/transcriptions: a form with a recording becomes text, in the formats of Whisper's clients.

The speech encoder reads up to half a minute and returns all of its text at once, so a transcript has one segment, and a
stream one delta. Hints (language, prompt, temperature) are accepted without effect.
"""

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import BaseModel
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.conversation import MediaPart
from autoglm.gateway.openai.generation import EVENT_STREAM, STREAM_HEADERS
from autoglm.gateway.openai.openapi import TEXT, Events, Spec
from autoglm.gateway.openai.route import Incoming, Responder, Route
from autoglm.v1.modality_pb2 import MODALITY_AUDIO
from autoglm.v1.speech_pb2 import SpeechServiceTranscribeResponse

FORMATS = {
    "json": "application/json", "verbose_json": "application/json", "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8", "vtt": "text/vtt; charset=utf-8",
}  # fmt: skip
MAX_FIELDS = 32
_HAN = re.compile(r"[\u3400-\u9fff]")
FORM = {
    "type": "object",
    "required": ["file", "model"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "WAV, MP3, FLAC or Ogg, up to 30 seconds."},
        "model": {"type": "string"},
        "response_format": {"type": "string", "enum": list(FORMATS), "default": "json"},
        "stream": {"type": "boolean", "default": False},
        "timestamp_granularities[]": {"type": "array", "items": {"type": "string", "enum": ["segment"]}},
        "language": {"type": "string", "description": "A hint without effect."},
        "prompt": {"type": "string", "description": "A hint without effect."},
        "temperature": {"type": "number", "description": "No effect: the likeliest transcript is returned."},
    },
}


class AudioDuration(BaseModel):
    """The recording's length in seconds."""

    type: Literal["duration"]
    seconds: float


class TranscriptSegment(BaseModel):
    """A stretch of a recording, in seconds."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]


class Transcription(BaseModel):
    """A transcript; the fields after `usage` come with `verbose_json` only."""

    text: str
    usage: AudioDuration
    task: Literal["transcribe"] = "transcribe"
    language: Literal["chinese", "english"] = "english"
    duration: float = 0.0
    segments: list[TranscriptSegment] = []


class TranscriptionEvent(BaseModel):
    """One event of a stream: `delta`, then `text` and `usage`; `[DONE]` follows the last."""

    type: Literal["transcript.text.delta", "transcript.text.done"]
    delta: str = ""
    text: str = ""
    usage: AudioDuration | None = None


@dataclass(frozen=True, slots=True)
class ParsedTranscriptionForm:
    """The recording to transcribe, and how to answer."""

    model: str
    audio: MediaPart
    format: str
    stream: bool


async def read(incoming: Incoming) -> ParsedTranscriptionForm:
    """Read a form; raises InvalidRequest naming the first invalid field."""
    form = await _form(incoming.headers, incoming.body)
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidRequest("file: a recording is required, as a file of the form", param="file")
    model, wanted = _text(form, "model", None), _text(form, "response_format", "json")
    if wanted not in FORMATS:
        raise InvalidRequest(f"response_format must be one of {', '.join(FORMATS)}", param="response_format")
    streamed = _text(form, "stream", "false").lower()
    if streamed not in ("true", "false"):
        raise InvalidRequest("stream must be true or false", param="stream")
    if any(each != "segment" for each in form.getlist("timestamp_granularities[]")):
        raise InvalidRequest("timestamp_granularities: only segment is supported", param="timestamp_granularities")
    return ParsedTranscriptionForm(
        model, MediaPart(MODALITY_AUDIO, await file.read(), "file"), wanted, streamed == "true"
    )


async def _form(headers: Headers, body: bytearray) -> FormData:
    async def once() -> AsyncGenerator[bytes, None]:
        yield bytes(body)

    if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidRequest("the body must be multipart/form-data with the recording in the field file")
    parser = MultiPartParser(headers, once(), max_files=1, max_fields=MAX_FIELDS)
    parser.spool_max_size = len(body) + 1  # a request is never written to disk
    try:
        return await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise InvalidRequest(
            f"the form cannot be read: {getattr(error, 'message', 'the boundary is missing')}"
        ) from None


def _text(form: FormData, name: str, default: str | None) -> str:
    value = form.get(name, default)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}: text is required", param=name)
    return value


async def reply(request: ParsedTranscriptionForm, respond: Responder) -> None:
    """Send the transcript; raises MeshError."""
    said = await respond.backend.assistant.transcribe(respond.slot, request.audio)
    if request.stream:
        await respond.start(EVENT_STREAM, *STREAM_HEADERS)
        await respond.finish(events(said))
    else:
        await respond.start(FORMATS[request.format])
        await respond.finish(render(said, request.format))


def render(said: SpeechServiceTranscribeResponse, wanted: str) -> bytes:
    """Return a transcript in one of `FORMATS`."""
    seconds = said.duration.ToNanoseconds() / 1e9
    if wanted == "text":
        return said.text.encode() + b"\n"
    if wanted == "srt":
        return f"1\n{_clock(0, ',')} --> {_clock(seconds, ',')}\n{said.text}\n\n".encode()
    if wanted == "vtt":
        return f"WEBVTT\n\n{_clock(0, '.')} --> {_clock(seconds, '.')}\n{said.text}\n\n".encode()
    body: dict[str, Any] = {"text": said.text, "usage": _usage(seconds)}
    if wanted == "verbose_json":
        segment = {"id": 0, "seek": 0, "start": 0.0, "end": seconds, "text": said.text, "tokens": []}
        language = "chinese" if _HAN.search(said.text) else "english"
        body |= {"task": "transcribe", "language": language, "duration": seconds, "segments": [segment]}
    return orjson.dumps(body)


def events(said: SpeechServiceTranscribeResponse) -> bytes:
    """Return a transcript as the events of a stream."""
    seconds = said.duration.ToNanoseconds() / 1e9
    delta = {"type": "transcript.text.delta", "delta": said.text}
    done = {"type": "transcript.text.done", "text": said.text, "usage": _usage(seconds)}
    return b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in (delta, done)) + b"data: [DONE]\n\n"


def _usage(seconds: float) -> dict[str, Any]:
    return {"type": "duration", "seconds": seconds}


def _clock(seconds: float, point: str) -> str:
    """Return a time as in subtitles: hours, minutes, seconds, and milliseconds after `point`."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


ROUTE = Route(
    "/v1/audio/transcriptions",
    read,
    reply,
    Spec(
        name="create_transcription",
        description="Write down what is said in a recording.",
        request={"multipart/form-data": {"schema": FORM}},
        answers={
            "application/json": Transcription,
            "text/event-stream": Events([TranscriptionEvent]),
            **dict.fromkeys(("text/plain", "application/x-subrip", "text/vtt"), TEXT),
        },
    ),
)
