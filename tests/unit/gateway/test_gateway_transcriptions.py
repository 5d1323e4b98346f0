"""POST /v1/audio/transcriptions: every format for openai-python's strict types, and every field of a form."""

import json
from collections.abc import AsyncIterator
from typing import Any, get_type_hints

import openai
import pytest
import pytest_asyncio
from openai.types.audio import transcription_create_params
from openai.types.audio.transcription import Transcription
from openai.types.audio.transcription_verbose import TranscriptionVerbose

from autoglm.common.testing import BUNDLE, FakeMesh
from autoglm.v1.speech_pb2 import SpeechServiceTranscribeResponse

from .conftest import Client
from .samples import wav

PATH = "/v1/audio/transcriptions"
TEXT = "打开设置"


def openai_of(client: Client) -> openai.AsyncOpenAI:
    """Return openai-python, which checks answers against its own types."""
    return openai.AsyncOpenAI(
        base_url=f"{client.url}/v1", api_key="EMPTY", max_retries=0, _strict_response_validation=True
    )


@pytest_asyncio.fixture(loop_scope="session")
async def strict(shared: Client) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai_of(shared) as strict:
        yield strict


def asking(**fields: Any) -> Any:
    return {"model": BUNDLE, "file": ("said.wav", wav()), **fields}


async def test_json_has_the_text_and_the_length(strict: openai.AsyncOpenAI) -> None:
    said = await strict.audio.transcriptions.create(**asking())
    assert isinstance(said, Transcription)
    assert (said.text, said.usage.model_dump() if said.usage else None, said.logprobs) == (
        TEXT, {"type": "duration", "seconds": 2.0}, None,
    )  # fmt: skip


async def test_log_probabilities_if_they_are_asked_for(strict: openai.AsyncOpenAI) -> None:
    said = await strict.audio.transcriptions.create(**asking(include=["logprobs"]))
    assert [(each.token, each.logprob) for each in said.logprobs] == [(character, -0.25) for character in TEXT]
    assert bytes(map(int, said.logprobs[0].bytes)).decode() == "打"


async def test_verbose_json_has_every_field_of_a_segment(strict: openai.AsyncOpenAI) -> None:
    said = await strict.audio.transcriptions.create(**asking(response_format="verbose_json"))
    assert isinstance(said, TranscriptionVerbose)
    assert (said.language, said.duration, said.words) == ("chinese", 2.0, None)
    assert [segment.model_dump() for segment in said.segments or ()] == [
        {
            "id": 0, "seek": 50, "start": 0.5, "end": 1.3, "text": TEXT, "tokens": [1, 2, 3, 4], "temperature": 0.0,
            "avg_logprob": -0.25, "compression_ratio": pytest.approx(12 / 21), "no_speech_prob": 0.125,
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("granularities", "segments", "words"),
    [(["word"], False, True), (["segment"], True, False), (["word", "segment"], True, True)],
)
async def test_words_and_segments_as_asked_for(
    strict: openai.AsyncOpenAI, granularities: list[str], segments: bool, words: bool
) -> None:
    fields = asking(response_format="verbose_json", timestamp_granularities=granularities)
    said = await strict.audio.transcriptions.create(**fields)
    assert (bool(said.segments), bool(said.words)) == (segments, words)
    if said.words:
        assert [(word.word, word.start, word.end) for word in said.words][:2] == [("打", 0.5, 0.7), ("开", 0.7, 0.9)]


async def test_a_stream_has_a_delta_for_each_segment(client: Client, mesh: FakeMesh) -> None:
    mesh.speech.said = said = SpeechServiceTranscribeResponse(text="open 设置吧 now", audio_tokens=30)
    for text in ("open", "设置", "吧", "now"):
        said.segments.add(text=text).tokens.add(id=1, text=text, logprob=-1)
    async with openai_of(client) as strict:
        stream = await strict.audio.transcriptions.create(**asking(stream=True, include=["logprobs"]))
        events = [event async for event in stream]
    assert [event.delta for event in events[:-1]] == ["open", " 设置", "吧", " now"]
    assert [event.logprobs[0].token for event in events[:-1]] == ["open", "设置", "吧", "now"]
    last = events[-1]
    assert (last.text, len(last.logprobs)) == (said.text, 4)
    assert (last.usage.input_tokens, last.usage.output_tokens, last.usage.total_tokens) == (30, 4, 34)


async def test_subtitles_have_the_times_of_what_is_said(shared: Client) -> None:
    cue = "00:00:00{0}500 --> 00:00:01{0}300\n打开设置\n\n"
    assert (await post(shared, response_format="srt")).text == "1\n" + cue.format(",")
    assert (await post(shared, response_format="vtt")).text == "WEBVTT\n\n" + cue.format(".")


async def post(client: Client, **fields: Any) -> Any:
    return await client.http.post(PATH, data={"model": BUNDLE, **fields}, files={"file": wav()})


# Each field of openai-python's type: with a value that is taken, and with values that are refused.
TAKEN: dict[str, Any] = {
    "file": None,
    "model": BUNDLE,
    "chunking_strategy": "auto",
    "include": ["logprobs"],
    "keywords": ["AutoGLM"],
    "language": "zh",
    "languages": ["zh", "en"],
    "prompt": "设置",
    "response_format": "json",
    "stream": "false",
    "temperature": "0.4",
    "timestamp_granularities": None,  # with verbose_json only
}
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("chunking_strategy", {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "0.5"}),
    ("chunking_strategy", {"chunking_strategy": "never"}),
    ("include", {"include[]": "words"}),
    ("include", {"include[]": "logprobs", "response_format": "srt"}),
    ("known_speaker_names", {"known_speaker_names[]": ["a", "b"]}),
    ("known_speaker_references", {"known_speaker_references[]": "data:audio/wav;base64,UklGRg=="}),
    ("response_format", {"response_format": "diarized_json"}),
    ("stream", {"stream": "true", "response_format": "vtt"}),
    ("stream", {"stream": "true", "response_format": "verbose_json"}),
    ("temperature", {"temperature": "1.5"}),
    ("temperature", {"temperature": "warm"}),
    ("temperature", {"temperature": "nan"}),
    ("timestamp_granularities", {"timestamp_granularities[]": "word"}),
    ("timestamp_granularities", {"timestamp_granularities": "line", "response_format": "verbose_json"}),
]


def test_every_field_of_openais_type_is_decided() -> None:
    fields = set(get_type_hints(transcription_create_params.TranscriptionCreateParamsStreaming))
    assert set(TAKEN) | {name for name, _ in REFUSED} == fields


async def test_fields_that_are_taken(shared: Client) -> None:
    fields = {(f"{name}[]" if isinstance(value, list) else name): value for name, value in TAKEN.items() if value}
    response = await post(shared, **fields)
    assert (response.status_code, response.json()["text"]) == (200, TEXT), response.text


@pytest.mark.parametrize("name", ["timestamp_granularities", "timestamp_granularities[]"])
async def test_a_list_is_taken_with_and_without_brackets(shared: Client, name: str) -> None:
    response = await post(shared, response_format="verbose_json", **{name: "word"})
    assert "words" in response.json()


@pytest.mark.parametrize(("param", "fields"), REFUSED)
async def test_a_field_that_is_refused_is_named(shared: Client, param: str, fields: dict[str, Any]) -> None:
    before = shared.mesh.calls
    response = await post(shared, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], shared.mesh.calls) == (400, param, before), error
    assert param in error["message"]


async def test_nothing_said(client: Client, mesh: FakeMesh) -> None:
    mesh.speech.said = SpeechServiceTranscribeResponse(audio_tokens=5)
    assert (await post(client, response_format="verbose_json")).json()["segments"] == []
    assert (await post(client, response_format="text")).text == "\n"
    assert (await post(client, response_format="srt")).text == ""
    assert (await post(client, response_format="vtt")).text == "WEBVTT\n\n"
    lines = (await post(client, stream="true")).text.split("\n\n")
    assert [json.loads(line[6:])["type"] for line in lines[:-2]] == ["transcript.text.done"]
    assert lines[-2] == "data: [DONE]"
