"""Recordings of any length as the service answers them, by the real bundle: silence, noise, pauses, times, limits."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from autoglm.common.torch_tensors import to_torch
from autoglm.fusion.gcma.model import GcmaConfig, GcmaFusion
from autoglm.speech.cut import audible, cut
from autoglm.speech.servicer import SpeechServicer
from autoglm.speech.settings import SpeechSettings
from autoglm.speech.transcript import SpokenSegment, SpokenToken, text_of
from autoglm.v1.speech_pb2 import (
    SpeechServiceEncodeRequest,
    SpeechServiceTranscribeRequest,
    SpeechServiceTranscribeResponse,
)

from ...browser import SPEECH

RATE = 16_000
SAID = "打开游戏"
Samples = NDArray[np.float32]


class Unused:
    """A context and metrics that no error and no figure reach."""

    def batched(self, size: int) -> None: ...

    def encoded(self, preprocess: float, queue: float, compute: float) -> None: ...

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


class Refusing(Unused):
    """A context that keeps what a refusal says."""

    details = ""

    def set_code(self, code: Any) -> None: ...

    def set_trailing_metadata(self, metadata: Any) -> None: ...

    def set_details(self, details: str) -> None:
        self.details = details


@pytest.fixture(scope="module")
def servicer() -> SpeechServicer:
    return SpeechServicer.load(
        SpeechSettings.model_validate({"device": "cpu", "max_batch": 2, "max_audio_seconds": 90})
    )


def speech() -> Samples:
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    assert rate == RATE
    return np.asarray(samples)


def silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * RATE), np.float32)


def hiss(seconds: float, loudness: float = 0.01) -> Samples:
    return (loudness * np.random.default_rng(7).standard_normal(int(seconds * RATE))).astype(np.float32)


def hum(seconds: float) -> Samples:
    return (0.2 * np.sin(2 * np.pi * 50 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def wav(*parts: Samples) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(parts), RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


async def heard(servicer: SpeechServicer, *parts: Samples) -> SpeechServiceTranscribeResponse:
    return await servicer.transcribe(SpeechServiceTranscribeRequest(audio=wav(*parts)), Unused(), Unused())


def times(answer: SpeechServiceTranscribeResponse) -> list[tuple[float, float]]:
    return [(each.start.ToNanoseconds() / 1e9, each.end.ToNanoseconds() / 1e9) for each in answer.segments]


CLICKS = silence(20)
CLICKS[:: RATE // 2] = 0.7


@pytest.mark.parametrize(
    "noise",
    [silence(0.1), silence(3), silence(30), silence(89), hiss(2), hiss(30), hiss(30, 0.3), hiss(30, 1e-4), hum(30),
     CLICKS, np.full(30 * RATE, 0.3, np.float32), np.linspace(-0.4, 0.4, 10 * RATE, dtype=np.float32)],
    ids=["0.1 s", "3 s", "30 s", "89 s", "short hiss", "hiss", "loud", "soft", "hum", "clicks", "an offset", "drift"],
)  # fmt: skip
async def test_where_nothing_is_said_nothing_is_heard(servicer: SpeechServicer, noise: Samples) -> None:
    answer = await heard(servicer, noise)
    assert (answer.text, list(answer.segments)) == ("", [])
    assert answer.duration.ToNanoseconds() / 1e9 == pytest.approx(len(noise) / RATE)


@pytest.mark.parametrize(
    ("before", "after"),
    [(silence(0), silence(0)), (silence(27), silence(0)), (silence(0), silence(28)), (hiss(25), silence(0)),
     (silence(4), hiss(20, 0.003)), (hum(6) / 10, hum(6) / 10), (silence(40), silence(40)), (hiss(3), hiss(3))],
    ids=["alone", "late", "early", "after hiss", "before hiss", "between hum", "in a long silence", "in hiss"],
)  # fmt: skip
async def test_speech_gains_no_letter_and_keeps_its_time(
    servicer: SpeechServicer, before: Samples, after: Samples
) -> None:
    answer = await heard(servicer, before, speech(), after)
    assert answer.text == SAID
    ((start, end),) = times(answer)
    first = len(before) / RATE
    assert first <= start < end <= first + len(speech()) / RATE + 0.2
    assert end <= answer.duration.ToNanoseconds() / 1e9
    trimmed = await heard(servicer, speech()[: int(1.31 * RATE)])
    assert times(trimmed)[-1][1] <= trimmed.duration.ToNanoseconds() / 1e9


async def test_a_long_recording_is_heard_from_end_to_end(servicer: SpeechServicer) -> None:
    pause = hiss(2.5, 1e-3)
    answer = await heard(servicer, *[part for _ in range(20) for part in (speech(), pause)])
    assert answer.text == SAID * 20
    spans, step = times(answer), (len(speech()) + len(pause)) / RATE
    assert len(spans) == 20
    for index, (start, end) in enumerate(spans):
        assert index * step <= start < end <= index * step + 1.6
    words = [word for segment in answer.segments for word in segment.words]
    assert "".join(word.text for word in words) == answer.text
    starts = [word.start.ToNanoseconds() for word in words]
    assert starts == sorted(starts)


async def test_figures_of_a_segment_are_probabilities_of_the_model(servicer: SpeechServicer) -> None:
    (segment,) = (await heard(servicer, speech())).segments
    logprobs = [token.logprob for token in segment.tokens]
    assert "".join(token.text for token in segment.tokens) == SAID
    assert segment.avg_logprob == pytest.approx(np.mean(logprobs))
    assert -0.5 < segment.avg_logprob <= 0
    assert 0 <= segment.no_speech_prob < 1e-6


async def test_tokens_of_a_long_recording_are_those_of_its_pieces(servicer: SpeechServicer) -> None:
    audio = wav(*[speech(), silence(3)] * 4)
    whole = await servicer.encode(SpeechServiceEncodeRequest(audio=audio), Unused(), Unused())
    transcript = await servicer.transcribe(SpeechServiceTranscribeRequest(audio=audio), Unused(), Unused())
    tokens = to_torch(whole.embedding.tokens)
    assert whole.embedding.transcript == transcript.text == SAID * 4
    assert len(tokens) == transcript.audio_tokens
    assert len(tokens) == pytest.approx(12.5 * 4 * (3 + len(speech()) / RATE), abs=4)
    assert torch.isfinite(tokens.float()).all()


async def test_the_limit_is_told_and_named(servicer: SpeechServicer) -> None:
    assert servicer.describe().encoder.max_duration.seconds == 90
    context = Refusing()
    request = SpeechServiceTranscribeRequest(audio=wav(silence(91)))
    assert await servicer.transcribe(request, context, Unused()) == SpeechServiceTranscribeResponse()
    assert "longer than 90 s" in context.details


def test_the_fusion_has_a_place_for_each_token_of_a_long_recording() -> None:
    torch.manual_seed(0)
    fusion = GcmaFusion(GcmaConfig(text_width=8, media_widths={"audio": 4}, width=8, heads=2, max_audio_tokens=10))
    token = torch.randn(4).expand(25, 4)
    placed = fusion.project_media("audio", token, torch.arange(25))
    torch.testing.assert_close(placed[10:20], placed[:10])
    assert not torch.allclose(placed[0], placed[1])


# --- cutting ---


def test_pieces_are_all_of_a_recording_and_none_is_too_long() -> None:
    samples = hiss(33.3)
    for most in (RATE, 5 * RATE, 30 * RATE, 40 * RATE):
        pieces = cut(samples, most)
        np.testing.assert_array_equal(np.concatenate([piece.samples for piece in pieces]), samples)
        assert max(len(piece.samples) for piece in pieces) <= most
        assert [piece.start for piece in pieces[1:]] == list(np.cumsum([len(piece.samples) for piece in pieces])[:-1])
        assert min(len(piece.samples) for piece in pieces) >= min(most // 4, len(samples)) - 320


def test_a_cut_is_in_a_pause() -> None:
    samples = hiss(12, 0.1)
    samples[int(3.1 * RATE) : int(3.5 * RATE)] *= 0.01
    samples[int(7.2 * RATE) : int(7.6 * RATE)] *= 0.01
    first, second, _ = cut(samples, 5 * RATE)
    assert 3.1 <= len(first.samples) / RATE <= 3.5
    assert 7.2 <= (second.start + len(second.samples)) / RATE <= 7.6


def syllables(seconds: float) -> Samples:
    """Return noise that is as loud and as soft as speech, four times a second."""
    swing = 0.02 + np.abs(np.sin(4 * np.pi * np.arange(int(seconds * RATE)) / RATE))
    return np.asarray(hiss(seconds, 0.2) * swing, np.float32)


def test_what_stands_out_from_the_background_is_audible() -> None:
    samples = hiss(4, 0.01)
    samples[RATE : 2 * RATE] += syllables(1)
    found = np.flatnonzero(audible(samples)) * 0.03
    assert 0.9 < found.min() < 1.1
    assert 1.9 < found.max() < 2.1
    assert not audible(hum(3)).any()
    assert audible(hum(0.5)).all()  # a vowel may be as steady


def test_noise_that_begins_after_speech_is_not_audible() -> None:
    for noise in (hiss(3, 0.2), hum(3)):
        found = np.flatnonzero(audible(np.concatenate([silence(0.5), syllables(2), silence(0.5), noise]))) * 0.03
        assert 0.4 < found.min() < 0.6
        assert 2.3 < found.max() < 2.6


def test_a_transcript_has_spaces_where_its_language_has_them() -> None:
    def segment(*texts: str) -> SpokenSegment:
        return SpokenSegment([SpokenToken(1, text, i, i + 0.5, -1) for i, text in enumerate(texts)], 0.1)

    said = segment("o", "p", "e", "n", " ", "设", "置")
    assert said.text == "open 设置"
    assert [(word.text, word.start, word.end) for word in said.words()] == [
        ("open", 0, 3.5), ("设", 5, 5.5), ("置", 6, 6.5)
    ]  # fmt: skip
    assert text_of([said, segment("吧"), segment("o", "k"), segment("n", "o", "w")]) == "open 设置吧 ok now"
    assert text_of([]) == ""
    assert (said.of_piece(2, 9).start, said.of_piece(2, 9).end, said.of_piece(2, 6.25).end) == (2, 8.5, 8.25)
    assert said.where([True] * 2 + [False] * 8, 1) == SpokenSegment(said.tokens[:3], 0.1)  # 0.3 s later is near enough
    assert said.where([False] * 10, 1) is None
