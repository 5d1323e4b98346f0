"""Text on its way out, and the bundle's config as transformers reads it."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.decoder.detokenizer import Detokenizer, Reasoning, StopStrings, token_bytes
from autoglm.fusion.compose import Composer
from autoglm.training.stages.fusion_decoder import DecoderConfig, FusionDecoder, glm_config

SMALL = DecoderConfig(hidden=128, layers=2, context=256)


@pytest.fixture(scope="module")
def assistant(composer: Composer) -> FusionDecoder:
    return FusionDecoder.fresh(SMALL, composer.tokenizer.get_vocab_size(), seed=4).eval()


def spell(tokenizer_: Tokenizer, text: str) -> list[int]:
    return list(tokenizer_.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("text", ["打开相机", "👩‍🚀 flies 🚀", "naïve café — 😀😀", "Open Camera now", "龘靐"])
def test_text_comes_whole_and_never_in_broken_characters(composer: Composer, text: str) -> None:
    detokenizer = Detokenizer(composer.tokenizer)
    pieces = [detokenizer.feed(token) for token in spell(composer.tokenizer, text)]
    assert "".join(pieces) + detokenizer.flush() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_token_bytes_spell_the_text(composer: Composer) -> None:
    text = "相机 naïve 😀"
    assert (
        b"".join(token_bytes(composer.tokenizer, token) for token in spell(composer.tokenizer, text)) == text.encode()
    )


def test_stop_strings_are_never_sent_even_in_pieces() -> None:
    stops = StopStrings(("STOP", "end"))
    assert [stops.feed(piece) for piece in ("a S", "T", "x e", "n", "d b")] == [
        ("a ", False), ("", False), ("STx ", False), ("", False), ("", True),
    ]  # fmt: skip


def test_stop_strings_give_back_what_waited_in_vain() -> None:
    stops = StopStrings(("STOP",))
    assert stops.feed("a ST") == ("a ", False)
    assert stops.flush() == "ST"


@pytest.mark.parametrize(
    ("pieces", "text", "reasoning"),
    [
        (["<think>", "why", "</think>", "so"], "so", "why"),
        (["<thi", "nk>wh", "y</th", "ink>so"], "so", "why"),
        (["no ", "<think>tags</think>"], "no <think>tags</think>", ""),
        (["<think>cut o", "ff"], "", "cut off"),
        (["<thin"], "<thin", ""),
    ],
)
def test_reasoning_comes_apart(pieces: list[str], text: str, reasoning: str) -> None:
    splitter = Reasoning(("<think>", "</think>"))
    parts = [splitter.feed(piece) for piece in pieces] + [splitter.flush()]
    assert ("".join(part[0] for part in parts), "".join(part[1] for part in parts)) == (text, reasoning)


def test_glm_config_is_saved_and_read_by_transformers(
    assistant: FusionDecoder, composer: Composer, tmp_path: Path
) -> None:
    assistant.decoder.save_pretrained(tmp_path)
    loaded = GlmForCausalLM.from_pretrained(tmp_path)
    expected = glm_config(SMALL, composer.tokenizer.get_vocab_size())
    assert loaded.config.num_key_value_heads == expected.num_key_value_heads
    assert torch.equal(loaded.lm_head.weight, assistant.decoder.lm_head.weight)
