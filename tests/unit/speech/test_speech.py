"""The speech part: what it hears (real espeak-ng), what it decodes, and a tiny encoder of random weights."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from autoglm.speech.model import SAMPLES_PER_TOKEN, SpeechEncoder, SpeechModel, Vocabulary, normalize
from autoglm.training.data import speech as data
from autoglm.training.data.wording import sentences
from autoglm.training.loop import LossAndFigures
from autoglm.training.recipe import Recipe
from autoglm.training.stages.ctranslate2 import whisper_weights
from autoglm.training.stages.shards import Shard
from autoglm.training.stages.speech import SpeechStudent, make_loop

# --- voices ---


def test_mandarin_is_spoken_as_mandarin() -> None:
    assert data.phonemes("打开", "zh") == "tˈɑ2 khˈai5"
    chinese = [text for language, text in sentences("train") + sentences("heldout") if language == "zh"]
    assert not [text for text in (*chinese, *data.words("zh")) if "(en)" in data.phonemes(text, "zh")]


def test_clips_repeat_for_a_seed_and_keep_the_splits_apart() -> None:
    first, again = (list(data.clips("heldout", 12, seed=3)) for _ in range(2))
    assert [clip.text for clip in first] == [clip.text for clip in again]
    for clip, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(clip.samples, same.samples)
        assert clip.samples.dtype == np.float32
        assert 0.04 < np.abs(clip.samples).max() <= 1
        assert clip.voice.split("+")[1] in data.VARIANTS["heldout"]
    assert not set(data.VARIANTS["train"]) & set(data.VARIANTS["heldout"])
    said = {clip.text for clip in data.clips("heldout", 12, seed=4, sentences_only=True)}
    scripts = {split: data.Script.of(split).sentences for split in data.VARIANTS}
    every = {split: {text for texts in script.values() for text in texts} for split, script in scripts.items()}
    assert said <= every["heldout"]
    assert not every["train"] & every["heldout"]


@pytest.mark.parametrize("variant", ["f5", "Reed", "klatt"])
def test_breath_noise_repeats_when_espeak_is_loaded_afresh(variant: str) -> None:
    voice = data.Voice(f"gmw/en-US+{variant}", 160, 50)
    first, again = (data.Espeak.fresh().say("hello music", voice) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_every_variant_is_one_of_espeaks() -> None:
    known = {path.name for path in Path(espeakng_loader.get_data_path(), "voices", "!v").iterdir()}
    assert known.issuperset(data.VARIANTS["train"] + data.VARIANTS["heldout"])


@pytest.mark.parametrize("name", ["gmw/en-US+m1", "nowhere+m1"])
def test_a_voice_that_cannot_speak_the_language_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="voice"):
        data.synthesize("打开音乐", "zh", data.Voice(name, 160, 50), np.random.default_rng(0))


# --- the model ---


@pytest.fixture(scope="module")
def model() -> SpeechModel:
    """A tiny encoder with random weights (large enough to make a difference visible)."""
    vocabulary = Vocabulary.of(["打开音乐", "Open Wi-Fi"])
    config = WhisperConfig(
        vocab_size=len(vocabulary.characters), d_model=32, encoder_layers=2, encoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_layers=0, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    network = SpeechEncoder(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return SpeechModel(network, WhisperFeatureExtractor(feature_size=80), vocabulary)


def noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000))).astype(np.float32)


def test_a_clip_is_the_same_alone_and_in_a_batch(model: SpeechModel) -> None:
    samples = [noise(0.13, 1), noise(2.0, 2), noise(0.7, 3)]
    for clip, together in zip(samples, model.encode(samples), strict=True):
        (alone,) = model.encode([clip])
        assert together.tokens.shape == (-(-len(clip) // SAMPLES_PER_TOKEN), model.width)
        torch.testing.assert_close(together.tokens, alone.tokens, rtol=1e-4, atol=1e-4)
        assert together.transcript == alone.transcript


def test_the_longest_clip_fits(model: SpeechModel) -> None:
    assert model.encode([noise(30.0)])[0].tokens.shape == (375, 128)


def test_states_are_those_of_whisper_at_its_own_length(model: SpeechModel) -> None:
    mel = torch.randn(1, 80, 3000)
    whisper: WhisperEncoder = model.network.encoder
    with torch.inference_mode():
        ours, _ = model.network(mel, torch.tensor([1500]))
        torch.testing.assert_close(ours, whisper(mel).last_hidden_state)


def test_a_saved_model_is_the_same_when_loaded(model: SpeechModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = SpeechModel.from_pretrained(tmp_path)
    assert loaded.vocabulary == model.vocabulary
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "vocab.json"}
    ours, theirs = model.encode([noise(0.5)])[0], loaded.encode([noise(0.5)])[0]
    torch.testing.assert_close(ours.tokens, theirs.tokens)
    halved = SpeechModel.from_pretrained(tmp_path, dtype=torch.bfloat16).encode([noise(0.5)])[0]
    assert halved.tokens.dtype == torch.bfloat16


def test_a_transcript_is_normalized_and_a_ctc_path_is_merged() -> None:
    assert normalize("  What's Wi-Fi? 打开!") == "whats wifi 打开"
    vocabulary = Vocabulary.of(["abb"])
    assert vocabulary.characters == ("<blank>", "a", "b")
    path = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 0, 2, 0, 2, 2]), 3).float().log()
    heard = vocabulary.tokens(path)
    assert [(token.id, token.text, token.start, token.logprob) for token in heard] == [
        (1, "a", 0.02, 0), (2, "b", 0.08, 0), (2, "b", 0.12, 0)
    ]  # fmt: skip
    assert [token.end for token in heard] == [0.08, 0.12, 0.16]
    assert vocabulary.tokens(path[:1]) == []
    assert vocabulary.encode("Ab!z") == [1, 2]


# --- training ---


def test_the_published_encoder_maps_onto_transformers() -> None:
    config = WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536)
    WhisperEncoder(config).load_state_dict(whisper_weights("encoder"), strict=True)


def test_training_goes_on_exactly_where_it_was_stopped(tmp_path: Path) -> None:
    Shard.write(tmp_path / "clips.npy", 2, seed=0)
    shard = Shard.load(tmp_path / "clips.npy")
    config = replace(Recipe.read().speech, steps=2, warmup=1)

    def train(workdir: Path, until: int) -> list[float]:
        """Interrupt a run when `until` steps are done; return the losses of its steps."""
        torch.manual_seed(0)
        student, losses = SpeechStudent(shard), list[float]()

        def step(number: int) -> LossAndFigures:
            if number == until:
                raise KeyboardInterrupt
            loss, figures = student.loss([number], config, number)
            losses.append(loss.item())
            return loss, figures

        with suppress(KeyboardInterrupt):
            make_loop(student, config, workdir).run(step)
        return losses

    straight, cut = train(tmp_path / "straight", 2), train(tmp_path / "cut", 1)
    assert len(cut) == 1
    assert straight == cut + train(tmp_path / "cut", 2)


def test_batches_hold_every_clip_once_an_epoch_and_keep_to_their_size(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(8_000, 64_000, 50)
    shard = Shard(np.zeros(0, np.int16), np.cumsum([0, *lengths]), [], [])
    order = shard.batches(12.0, np.random.default_rng(0))
    seen: list[int] = []
    while len(seen) < 50:
        batch = next(order)
        assert max(lengths[index] for index in batch) * len(batch) <= 12 * 16_000
        seen += batch
    assert sorted(seen) == list(range(50))
