"""POST /v1/audio/transcriptions, by openai-python as published and by a plain form."""

import base64
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import jiwer
import numpy as np
import openai
import pytest

from autoglm.training.data.speech import Espeak

from ..asking import MODEL
from ..cases import spoken

SENTENCE = "打开相机"
ROUTE = "/v1/audio/transcriptions"


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="EMPTY", max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.fixture(scope="module")
def recording() -> bytes:
    Espeak.fresh()
    part = spoken(SENTENCE, "zh", np.random.default_rng(4))
    return base64.b64decode(part["input_audio"]["data"])


def test_what_was_said_in_every_format(client: openai.OpenAI, recording: bytes) -> None:
    transcribe: Any = partial(client.audio.transcriptions.create, model=MODEL, file=("recording.wav", recording))
    text = transcribe(language="zh").text
    assert jiwer.cer(SENTENCE, text) <= 0.25
    assert transcribe(response_format="text") == text + "\n"
    whole = transcribe(response_format="verbose_json", timestamp_granularities=["segment"])
    assert (whole.text, whole.language) == (text, "chinese")
    (segment,) = whole.segments
    assert segment.text == text
    assert 0 <= segment.start < segment.end <= whole.duration
    start, end = (f"00:00:{round(1000 * at) / 1000:06.3f}" for at in (segment.start, segment.end))
    assert transcribe(response_format="vtt") == f"WEBVTT\n\n{start} --> {end}\n{text}\n\n"
    times = f"{start} --> {end}".replace(".", ",")
    assert transcribe(response_format="srt") == f"1\n{times}\n{text}\n\n"
    events = list(transcribe(stream=True))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert events[-1].text == text


@pytest.mark.parametrize(
    ("fields", "files", "status", "param"),
    [
        ({"model": MODEL}, {}, 400, "file"),
        ({}, {"file": b"RIFF"}, 400, "model"),
        ({"model": MODEL, "response_format": "docx"}, {"file": b"RIFF"}, 400, "response_format"),
        ({"model": MODEL, "stream": "perhaps"}, {"file": b"RIFF"}, 400, "stream"),
        ({"model": MODEL, "timestamp_granularities[]": "line"}, {"file": b"RIFF"}, 400, "timestamp_granularities"),
        ({"model": "gpt-9"}, {"file": b"RIFF"}, 404, "model"),
        ({"model": MODEL}, {"file": b"not a recording"}, 415, "file"),
        ({"model": MODEL}, {"file": b"RIFF....WAVEfmt "}, 415, "file"),
    ],
)
def test_a_bad_form_is_told_which_field_is_at_fault(
    base_url: str, fields: dict[str, str], files: dict[str, bytes], status: int, param: str
) -> None:
    response = httpx.post(
        base_url.removesuffix("/v1") + ROUTE, data=fields, files=files or {"other": b"x"}, trust_env=False
    )
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "multipart/form-data; boundary=x"])
def test_what_is_no_form_is_refused(base_url: str, kind: str) -> None:
    url = base_url.removesuffix("/v1") + ROUTE
    response = httpx.post(url, content=b'{"model": "x"}', headers={"content-type": kind}, trust_env=False)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request_error"), response.text


def test_a_recording_that_is_too_large_is_refused_before_it_is_kept(base_url: str) -> None:
    url = base_url.removesuffix("/v1") + ROUTE
    response = httpx.post(url, data={"model": MODEL}, files={"file": bytes(33 * 2**20)}, trust_env=False)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
