"""OpenAI's POST /v1/audio/transcriptions: a form with a recording becomes text, in the formats of Whisper's clients.

The speech encoder hears half a minute at most and says all of it at once, so a transcript has one segment, and a stream
one delta. Hints (language, prompt, temperature) are taken and change nothing.
"""

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.conversation import MediaPart
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
        "file": {"type": "string", "format": "binary", "description": "WAV, MP3, FLAC or Ogg, 30 seconds at most."},
        "model": {"type": "string"},
        "response_format": {"type": "string", "enum": list(FORMATS), "default": "json"},
        "stream": {"type": "boolean", "default": False},
        "timestamp_granularities[]": {"type": "array", "items": {"type": "string", "enum": ["segment"]}},
        "language": {"type": "string", "description": "A hint, without effect."},
        "prompt": {"type": "string", "description": "A hint, without effect."},
        "temperature": {"type": "number", "description": "Without effect: a transcript is the likeliest."},
    },
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a form asks for."""

    model: str
    audio: MediaPart
    format: str
    stream: bool


async def parse(headers: Headers, body: bytearray) -> Asked:
    """Read a form; raises InvalidRequest naming the first field at fault."""
    form = await _form(headers, body)
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidRequest("file: a recording is needed, as a file of the form", param="file")
    model, wanted = _text(form, "model", None), _text(form, "response_format", "json")
    if wanted not in FORMATS:
        raise InvalidRequest(f"response_format must be one of {', '.join(FORMATS)}", param="response_format")
    streamed = _text(form, "stream", "false").lower()
    if streamed not in ("true", "false"):
        raise InvalidRequest("stream must be true or false", param="stream")
    if any(each != "segment" for each in form.getlist("timestamp_granularities[]")):
        raise InvalidRequest(
            "timestamp_granularities: this model times segments, not words", param="timestamp_granularities"
        )
    return Asked(model, MediaPart(MODALITY_AUDIO, await file.read(), "file"), wanted, streamed == "true")


async def _form(headers: Headers, body: bytearray) -> FormData:
    async def once() -> AsyncGenerator[bytes, None]:
        yield bytes(body)

    if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidRequest("the body must be multipart/form-data, with the recording as its file")
    parser = MultiPartParser(headers, once(), max_files=1, max_fields=MAX_FIELDS)
    parser.spool_max_size = len(body) + 1  # nothing of a request goes to disk
    try:
        return await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise InvalidRequest(f"the form cannot be read: {getattr(error, 'message', 'it names no boundary')}") from None


def _text(form: FormData, name: str, default: str | None) -> str:
    value = form.get(name, default)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}: a text is needed", param=name)
    return value


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
    """Return a time as subtitles write it: hours, minutes, seconds, milliseconds behind `point`."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
