"""What is said of a bundle on real media: real espeak, the published Whisper, the committed bundle's encoder."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from autoglm.cli.main import app
from autoglm.common.bundle import default_bundle
from autoglm.speech.model import SAMPLE_RATE, SpeechModel
from autoglm.training.data.speech import Espeak, Voice, speak
from autoglm.training.eval import real_media
from autoglm.training.eval.encoder_drift import encoder_drift, explained
from autoglm.training.eval.media_files import (
    AISHELL,
    NEWS,
    PROMPT_TEXTS,
    PROMPTS,
    ROBOT,
    SOURCES,
    SPHINX,
    MediaError,
    recordings,
)
from autoglm.training.eval.published import PublishedWhisper
from autoglm.training.stages.speech import build_model

WORDS = "Open the camera"


@pytest.fixture(scope="module")
def said() -> NDArray[np.float32]:
    Espeak.fresh()
    return speak(WORDS, Voice("gmw/en-US+m3", 150, 50), np.random.default_rng(0))


@pytest.fixture(scope="module")
def model() -> SpeechModel:
    return SpeechModel.from_pretrained(default_bundle() / "speech")


def test_both_encoders_hear_espeak(said: NDArray[np.float32], model: SpeechModel) -> None:
    heard = [model.encode([said])[0].transcript, PublishedWhisper().transcribe(said)]
    assert [real_media.word_errors([WORDS], [text]) for text in heard] == [0, 0], heard


def test_errors_pass_over_case_punctuation_and_digits() -> None:
    assert real_media.word_errors(["ten of clubs", "Do not disturb."], ["10 of clubs", "do not disturb"]) == 0
    assert real_media.word_errors(["five five"], ["55"]) == 0
    assert real_media.word_errors(["go of clubs"], ["go of"]) == pytest.approx(1 / 3)
    assert real_media.word_errors(["打开音乐!"], ["打开音频"]) == 1 / 4
    assert real_media.character_errors(["打开音乐!"], ["打开音频"]) == 1 / 4


def test_explained_is_one_for_a_linear_map_and_nothing_for_strangers() -> None:
    torch.manual_seed(0)
    clips = [torch.randn(500, 16) for _ in range(4)]
    mixing = torch.randn(16, 16)
    assert explained(clips, [3 * clip @ mixing + 1 for clip in clips]) > 0.99
    assert abs(explained(clips, [torch.randn(500, 16) for _ in clips])) < 0.05


def test_nothing_is_lost_of_the_published_encoder_only_by_itself(said: NDArray[np.float32], model: SpeechModel) -> None:
    clips = [said[start:] for start in (0, 1000, 2000, 3000)]
    for row in encoder_drift(build_model(model.vocabulary), clips, clips):
        assert row["untrained"] < row["person"]
        assert min(row["person"], row["espeak"]) > 0.9


def test_recordings_are_read_with_what_is_said(tmp_path: Path, said: NDArray[np.float32]) -> None:
    prompts = {"hello": "Hello.", "digits/2": "two [2]", "torture": "torture menus", "beep": "[beep]"}
    files = [SPHINX / "cards/001.wav", SPHINX / "librivox/0870.wav", *(PROMPTS / f"{name}.wav" for name in prompts)]
    for path in [tmp_path / file for file in (*files, *(AISHELL / name for name in NEWS))]:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, said, SAMPLE_RATE)
    (tmp_path / SPHINX / "tidigits").mkdir()
    for name in ROBOT:
        soundfile.write(tmp_path / SPHINX / name, said, SAMPLE_RATE, "PCM_16", format="RAW")
    (tmp_path / SPHINX / "cards/cards.transcription").write_text("<s> ten of clubs  </s> (001)\n")
    (tmp_path / SPHINX / "librivox/transcription").write_text("<s> he was not </s> (0870)\n")
    (tmp_path / PROMPT_TEXTS).parent.mkdir(parents=True)
    lines = ["; Core Sounds", "", *(f"{name}: {text}" for name, text in prompts.items())]
    (tmp_path / PROMPT_TEXTS).write_bytes(gzip.compress("\n".join(lines).encode()))
    every = recordings(tmp_path)
    texts = [recording.text for recording in every if recording.source in ("novel", "cards", "prompts")]
    assert texts == ["he was not", "ten of clubs", "Hello.", "two"]
    for recording in every:
        np.testing.assert_allclose(recording.samples, said, atol=1e-4)


def test_a_folder_without_media_says_how_to_fetch_them(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"sh tools/real_media\.sh"):
        recordings(tmp_path)
    said = CliRunner().invoke(app, ["eval", "real", "--media", str(tmp_path / "none")])
    assert said.exit_code == 1
    assert said.stderr.startswith("autoglm eval: ")
    assert "none/usr/share/pocketsphinx" in said.stderr


def test_markdown_says_words_as_they_are() -> None:
    heard = [
        real_media.Heard(
            source=source, name="1.wav", language="en", said="ten | six", heard=dict.fromkeys(real_media.HEARERS, "10")
        )
        for source in SOURCES
    ]
    look = real_media.PictureAnswer(
        picture="cat", question=real_media.QUESTIONS[0], answer="<think>a|b</think>\nyes", gate=0.25
    )
    text = real_media.markdown(
        real_media.RealMediaReport(revisions={"speech": "1a"}, heard=heard, encoder_drift=[], looks=[look])
    )
    assert "| **all English** | 5 | 0 right, 0.33 (1.00) | 0 right, 0.33 (1.00) | 0 right, 0.33 |" in text
    assert "| cat | `<think>a\\|b</think> yes` 0.250 |" in text
