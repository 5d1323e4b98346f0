"""POST /v1/audio/transcriptions: a form with a recording becomes text, in the formats of Whisper's clients.

The speech service returns all segments at once; a stream has a delta for each. Hints (language, prompt, keywords,
temperature) are accepted without effect. What would change the answer and cannot be had is refused by its name.
"""

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import orjson
from pydantic import BaseModel
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from autoglm.common.errors import InvalidRequest
from autoglm.common.recordings import NAMES
from autoglm.gateway.conversation import MediaPart, Range
from autoglm.gateway.limits import MAX_FORM_FIELD_BYTES, MAX_FORM_FIELDS
from autoglm.gateway.openai.generation import EVENT_STREAM, STREAM_HEADERS
from autoglm.gateway.openai.openapi import TEXT, Events, Spec
from autoglm.gateway.openai.route import Incoming, Responder, Route
from autoglm.gateway.tasks import OFF_LOOP_BYTES
from autoglm.v1.modality_pb2 import MODALITY_AUDIO
from autoglm.v1.speech_pb2 import SpeechServiceTranscribeResponse
from autoglm.v1.transcript_pb2 import TranscriptSegment as Segment
from autoglm.v1.transcript_pb2 import TranscriptWord as Word

FORMATS = {
    "json": "application/json", "verbose_json": "application/json", "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8", "vtt": "text/vtt; charset=utf-8",
}  # fmt: skip
STREAMED_FORMATS = ("json", "text")
GRANULARITIES = ("segment", "word")
TEMPERATURES = Range(0, 1)
PIECE = 256 * 1024  # bytes of a form that are read in one go
_HAN = re.compile(r"[\u3400-\u9fff]")
_SPEAKERS = "speakers are not told apart"
_HINT = {"type": "string", "description": "A hint without effect."}
_HINTS = {"type": "array", "items": {"type": "string"}, "description": "Hints without effect."}
FORM = {
    "type": "object",
    "required": ["file", "model"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": f"{NAMES}; of a video the sound is read."},
        "model": {"type": "string"},
        "response_format": {"type": "string", "enum": list(FORMATS), "default": "json"},
        "stream": {"type": "boolean", "default": False, "description": "With `json` or `text` only."},
        "timestamp_granularities[]": {
            "type": "array",
            "items": {"type": "string", "enum": list(GRANULARITIES)},
            "description": "With `verbose_json` only.",
        },
        "include[]": {
            "type": "array",
            "items": {"type": "string", "enum": ["logprobs"]},
            "description": "`logprobs`, with `json` only, adds the log probability of each character.",
        },
        "chunking_strategy": {"type": "string", "enum": ["auto"], "description": "Long recordings are always cut."},
        "language": _HINT,
        "languages[]": _HINTS,
        "prompt": _HINT,
        "keywords[]": _HINTS,
        "temperature": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "No effect: the likeliest transcript is returned.",
        },
    },
}


class AudioDuration(BaseModel):
    """The recording's length in seconds."""

    type: Literal["duration"]
    seconds: float


class AudioTokenDetails(BaseModel):
    """The tokens of the recording."""

    audio_tokens: int
    text_tokens: int


class AudioTokens(BaseModel):
    """The tokens of the recording and of the transcript."""

    type: Literal["tokens"]
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: AudioTokenDetails


class TranscriptionLogprob(BaseModel):
    """A token of the transcript, with its natural log probability."""

    token: str
    bytes: list[int]
    logprob: float


class TranscriptionSegment(BaseModel):
    """A stretch of speech: times in seconds, `seek` in hundredths of a second.

    `avg_logprob` is the mean log probability of its tokens, `compression_ratio` its length in UTF-8 over its length
    compressed by zlib, `no_speech_prob` the probability that nothing is said from start to end.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class TranscriptionWord(BaseModel):
    """A word, or a Chinese character, with its times in seconds."""

    word: str
    start: float
    end: float


class Transcription(BaseModel):
    """A transcript. `logprobs` comes if `include[]` has it; the fields after that come with `verbose_json` only."""

    text: str
    usage: AudioDuration
    logprobs: list[TranscriptionLogprob] = []
    task: Literal["transcribe"] = "transcribe"
    language: Literal["chinese", "english"] = "english"
    duration: float = 0.0
    segments: list[TranscriptionSegment] = []
    words: list[TranscriptionWord] = []


class TranscriptionEvent(BaseModel):
    """One event of a stream: a `delta` for each segment, then `text` and `usage`; `[DONE]` follows the last."""

    type: Literal["transcript.text.delta", "transcript.text.done"]
    delta: str = ""
    text: str = ""
    logprobs: list[TranscriptionLogprob] = []
    usage: AudioTokens | None = None


@dataclass(frozen=True, slots=True)
class ParsedTranscriptionForm:
    """The recording to transcribe, and how to answer."""

    model: str
    audio: MediaPart
    format: str
    stream: bool
    granularities: Collection[str]
    logprobs: bool


async def read(incoming: Incoming) -> ParsedTranscriptionForm:
    """Read a form; raises InvalidRequest naming the first invalid field."""
    kind = incoming.headers.get("content-type", "")
    if len(incoming.body) <= OFF_LOOP_BYTES:
        return await _parsed(kind, incoming.body)
    return await incoming.readers.read(incoming.body, partial(_parsed_apart, kind), is_json=False)


def _parsed_apart(content_type: str, body: bytes | bytearray) -> ParsedTranscriptionForm:
    return asyncio.run(_parsed(content_type, body))


async def _parsed(content_type: str, body: bytes | bytearray) -> ParsedTranscriptionForm:
    form = await _form(content_type, body)
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidRequest("file: a recording is required, as a file of the form", param="file")
    _check_unsupported(form)
    model, wanted = _text(form, "model", None), _choice(form, "response_format", "json", FORMATS)
    streamed = _choice(form, "stream", "false", ("true", "false")) == "true"
    if streamed and wanted not in STREAMED_FORMATS:
        raise InvalidRequest(f"stream: {wanted} cannot be streamed; use json or text", param="stream")
    granularities = _choices(form, "timestamp_granularities", GRANULARITIES, "verbose_json", wanted)
    logprobs = _choices(form, "include", ("logprobs",), "json", wanted)
    audio = MediaPart(MODALITY_AUDIO, await file.read(), "file")
    return ParsedTranscriptionForm(model, audio, wanted, streamed, granularities or ("segment",), bool(logprobs))


def _check_unsupported(form: FormData) -> None:
    """Raise InvalidRequest for a field with a value that would change the answer and is not supported."""
    for key in form:
        name = key.partition("[")[0]
        if name in ("known_speaker_names", "known_speaker_references"):
            raise InvalidRequest(f"{name}: {_SPEAKERS}; leave it out", param=name)
        if name == "chunking_strategy" and (key != name or form[key] != "auto"):
            raise InvalidRequest(f"{name}: only auto is supported", param=name)
    if form.get("response_format") == "diarized_json":
        raise InvalidRequest(f"response_format: {_SPEAKERS}; use verbose_json", param="response_format")
    temperature = _text(form, "temperature", "0")
    try:
        valid = float(temperature) in TEMPERATURES
    except ValueError:
        valid = False
    if not valid:
        raise InvalidRequest(f"temperature must be a number {TEMPERATURES}", param="temperature")


async def _form(content_type: str, body: bytes | bytearray) -> FormData:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), PIECE):
            yield bytes(body[start : start + PIECE])

    if not content_type.lower().startswith("multipart/form-data"):
        raise InvalidRequest("the body must be multipart/form-data with the recording in the field file")
    headers = Headers({"content-type": content_type})
    most = {"max_files": 1, "max_fields": MAX_FORM_FIELDS, "max_part_size": MAX_FORM_FIELD_BYTES}
    parser = MultiPartParser(headers, pieces(), **most)
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


def _choice(form: FormData, name: str, default: str, allowed: Collection[str]) -> str:
    value = _text(form, name, default).lower()
    if value not in allowed:
        raise InvalidRequest(f"{name} must be one of {', '.join(allowed)}", param=name)
    return value


def _choices(form: FormData, name: str, allowed: Collection[str], needed: str, wanted: str) -> Collection[str]:
    """Return the values of a list, as clients and as people write it; it needs one of the response formats."""
    values = [str(value) for key in (f"{name}[]", name) for value in form.getlist(key)]
    for value in values:
        if value not in allowed:
            raise InvalidRequest(f"{name} must be any of {', '.join(allowed)}", param=name)
    if values and wanted != needed:
        raise InvalidRequest(f"{name} requires the response_format {needed}", param=name)
    return values


async def reply(request: ParsedTranscriptionForm, respond: Responder) -> None:
    """Send the transcript; raises MeshError."""
    said = await respond.backend.assistant.transcribe(respond.slot, request.audio)
    if request.stream:
        await respond.start(EVENT_STREAM, *STREAM_HEADERS)
        await respond.finish(b"".join(events(said, request.logprobs)))
    else:
        await respond.start(FORMATS[request.format])
        await respond.finish(render(said, request))


def render(said: SpeechServiceTranscribeResponse, request: ParsedTranscriptionForm) -> bytes:
    """Return a transcript in one of `FORMATS`."""
    if request.format == "text":
        return said.text.encode() + b"\n"
    if request.format == "srt":
        cues = (f"{i}\n{_cue(segment, ',')}" for i, segment in enumerate(said.segments, 1))
        return "".join(cues).encode()
    if request.format == "vtt":
        return ("WEBVTT\n\n" + "".join(_cue(segment, ".") for segment in said.segments)).encode()
    seconds = said.duration.ToNanoseconds() / 1e9
    body: dict[str, Any] = {"text": said.text, "usage": {"type": "duration", "seconds": seconds}}
    if request.logprobs:
        body["logprobs"] = _logprobs(said.segments)
    if request.format == "verbose_json":
        language = "chinese" if _HAN.search(said.text) else "english"
        body |= {"task": "transcribe", "language": language, "duration": seconds}
        if "segment" in request.granularities:
            body["segments"] = [_segment(i, segment) for i, segment in enumerate(said.segments)]
        if "word" in request.granularities:
            body["words"] = [{"word": word.text, **_times(word)} for segment in said.segments for word in segment.words]
    return orjson.dumps(body)


def events(said: SpeechServiceTranscribeResponse, logprobs: bool) -> Iterator[bytes]:
    """Yield a transcript as the events of a stream."""
    position = 0
    for segment in said.segments:
        end = said.text.index(segment.text, position) + len(segment.text)
        delta = {"type": "transcript.text.delta", "delta": said.text[position:end]}
        yield _event(delta | ({"logprobs": _logprobs([segment])} if logprobs else {}))
        position = end
    done = {"type": "transcript.text.done", "text": said.text, "usage": _tokens(said)}
    yield _event(done | ({"logprobs": _logprobs(said.segments)} if logprobs else {}))
    yield b"data: [DONE]\n\n"


def _event(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


def _segment(index: int, segment: Segment) -> dict[str, Any]:
    text, times = segment.text.encode(), _times(segment)
    return {
        "id": index,
        "seek": int(100 * times["start"]),
        **times,
        "text": segment.text,
        "tokens": [token.id for token in segment.tokens],
        "temperature": 0.0,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": len(text) / len(zlib.compress(text)),
        "no_speech_prob": segment.no_speech_prob,
    }


def _times(span: Segment | Word) -> dict[str, float]:
    return {"start": span.start.ToNanoseconds() / 1e9, "end": span.end.ToNanoseconds() / 1e9}


def _logprobs(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    return [
        {"token": token.text, "bytes": list(token.text.encode()), "logprob": token.logprob}
        for segment in segments
        for token in segment.tokens
    ]


def _tokens(said: SpeechServiceTranscribeResponse) -> dict[str, Any]:
    heard, written = said.audio_tokens, sum(len(segment.tokens) for segment in said.segments)
    return {
        "type": "tokens",
        "input_tokens": heard,
        "output_tokens": written,
        "total_tokens": heard + written,
        "input_token_details": {"audio_tokens": heard, "text_tokens": 0},
    }


def _cue(segment: Segment, point: str) -> str:
    """Return a segment as in subtitles, with `point` before milliseconds."""
    start, end = (_clock(seconds, point) for seconds in _times(segment).values())
    return f"{start} --> {end}\n{segment.text}\n\n"


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
