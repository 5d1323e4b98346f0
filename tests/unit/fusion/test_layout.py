"""The composer under layouts other than GCMA's: order, separator, transcripts, marks."""

import dataclasses
from pathlib import Path

import pytest
import torch

from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.fusion.layout import Layout
from autoglm.fusion.prompt import Media, PromptMessage
from autoglm.training.stages import tokenizer

SCREEN, SPEECH = Media("image", torch.zeros(2, 1)), Media("audio", torch.zeros(1, 1), "hello")
MIXED = [PromptMessage("user", ("first", SPEECH, "last", SCREEN))]
IMAGE = "<|begin_of_image|><|image|><|image|><|end_of_image|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("decoder")
    tokenizer.build(made)
    return made


def text(folder: Path, layout: Layout) -> str:
    composer = Composer(folder, layout)
    decoded: str = composer.tokenizer.decode(composer.compose(MIXED).token_ids, skip_special_tokens=False)
    return decoded.split("<|user|>\n")[1].split("<|assistant|>")[0]


def test_media_come_first_in_the_order_of_the_layout(folder: Path) -> None:
    speech = "<|begin_of_audio|><|audio|>hello<|end_of_audio|>"
    assert text(folder, GCMA_LAYOUT) == f"{IMAGE}{speech}firstlast"
    turned = dataclasses.replace(GCMA_LAYOUT, media=GCMA_LAYOUT.media[::-1])
    assert text(folder, turned) == f"{speech}{IMAGE}firstlast"


def test_parts_can_keep_the_clients_order_with_a_separator(folder: Path) -> None:
    plain = tuple(dataclasses.replace(row, transcribed=False) for row in GCMA_LAYOUT.media)
    layout = Layout(plain, media_first=False, separator="\n")
    assert text(folder, layout) == f"first\n<|begin_of_audio|><|audio|><|end_of_audio|>\nlast\n{IMAGE}"


def test_a_medium_outside_the_layout_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="does not take audio"):
        Composer(folder, Layout(GCMA_LAYOUT.media[:1])).compose(MIXED)


def test_the_marks_of_reasoning_and_calls_are_the_layouts(folder: Path) -> None:
    layout = dataclasses.replace(GCMA_LAYOUT, thinking=("<|assistant|>\n", ""), tool_call=("[call]", "[/call]"))
    composer = Composer(folder, layout)
    assert composer.compose(MIXED).echo == "<|assistant|>\n"
    assert Composer(folder, GCMA_LAYOUT).takes_tools
    assert not composer.takes_tools


def test_a_tokenizer_without_a_media_token_is_refused(folder: Path) -> None:
    row = dataclasses.replace(GCMA_LAYOUT.media[0], placeholder="<|picture|>")
    with pytest.raises(ValueError, match=r"no token <\|picture\|>"):
        Composer(folder, Layout((row,)))
