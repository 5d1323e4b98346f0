"""Initialisation and fusion still learn: the colour of a named icon, from ideal features, in a few steps.

The model is small, and the steps are bounded: some ten seconds of one core.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers.models.glm import GlmForCausalLM

from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.fusion.gcma.model import GcmaConfig, GcmaFusion
from autoglm.fusion.prompt import Media, PromptMessage
from autoglm.training.data.catalog import APPS, COLOURS
from autoglm.training.data.screens import Element
from autoglm.training.data.tasks import Ask, Page, reply
from autoglm.training.loop import Loop, LoopConfig, LossAndFigures
from autoglm.training.recipe import Recipe
from autoglm.training.samples import Case, Turn
from autoglm.training.stages import tokenizer
from autoglm.training.stages.fusion_decoder import DecoderConfig, FusionDecoder, glm_config
from autoglm.training.stages.joint import answer_loss, attention_loss, cell, optimizers
from autoglm.training.stages.token_batches import TokenBatch, TokenBatches

ICONS, STEPS, TOKENS = 6, 130, 700


class IdealScreens:
    """Draws the question from pages whose features say plainly what is in each cell."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(0)
        self.meaning = {name: torch.randn(320, generator=generator) for name in (*APPS, *COLOURS)}

    def draw(self) -> Case:
        """Return the question for one icon of a page with several."""
        cells = self.rng.permutation(49)[:ICONS]
        names = [list(APPS)[i] for i in self.rng.permutation(len(APPS))[:ICONS]]
        elements = [self._icon(int(at), name) for at, name in zip(cells, names, strict=True)]
        tokens = torch.zeros(49, 320)
        for element in elements:
            tokens[cell(element.box)] = self.meaning[element.name] + self.meaning[element.colour or ""]
        ask = Ask("colour", names[0], "en")
        answer = reply(Page("home", None, tuple(elements)), ask)
        assert answer is not None
        message = PromptMessage("user", (Media("image", tokens), f"What colour is {ask.filler}?"))
        return Case("colour", "screen", "en", (Turn(message, answer),))

    def _icon(self, at: int, name: str) -> Element:
        left, top = at % 7 * 1000 / 7, at // 7 * 1000 / 7
        return Element("icon", name, (left, top, left + 140, top + 140), list(COLOURS)[self.rng.integers(len(COLOURS))])


def test_a_named_colour_is_learned_in_130_steps(tmp_path: Path, one_thread: None) -> None:
    """Seen to fail with small token embeddings (deviation .1) before layers that are not zeroed, with transformers'
    initialisation of the fusion, and with context taps of zero."""
    tokenizer.build(tmp_path)
    composer = Composer(tmp_path, GCMA_LAYOUT)
    torch.manual_seed(4)
    decoder = GlmForCausalLM(glm_config(DecoderConfig(hidden=128, layers=1, context=256), composer.vocabulary))
    model = FusionDecoder(GcmaFusion(GcmaConfig(text_width=128, width=128, heads=4)), decoder)
    model.initialise()
    align = Recipe.read().align
    rates = replace(align, learning_rate=4 * align.learning_rate, matrix_rate=4 * align.matrix_rate)
    config = LoopConfig("test", STEPS, 1.0, lambda step: min(1.0, (step + 1) / 10, 2.5 * (1 - step / STEPS)))
    batches = TokenBatches(composer, IdealScreens(1), TOKENS)
    loop = Loop(model, optimizers(model, rates), config, tmp_path, batches)
    drawn = iter(batches)

    def step(_number: int) -> LossAndFigures:
        batch = next(drawn)
        logits, added = model(batch)
        return answer_loss(batch, logits)[0] + attention_loss(batch, added), {}

    loop.run(step)
    assert accuracy(model, drawn) >= 0.9


@torch.inference_mode()
def accuracy(model: FusionDecoder, drawn: Iterator[TokenBatch]) -> float:
    """Return the share of fresh answers of which every token is the likeliest."""
    right: list[bool] = []
    for _ in range(4):
        batch = next(drawn)
        logits, _ = model(batch)
        hits = logits.argmax(-1) == batch.targets
        right += [bool(answer.all()) for answer in hits.split(batch.learned.sum(1).tolist())]
    return sum(right) / len(right)
