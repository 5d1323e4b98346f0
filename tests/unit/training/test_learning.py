"""Initialisation and fusion still learn: the colour of a named icon, from ideal features, in a few steps."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.fusion.prompt import Media, PromptMessage
from autoglm.training.data.catalog import APPS, COLOURS
from autoglm.training.data.screens import Element
from autoglm.training.data.tasks import Ask, Page, reply
from autoglm.training.loop import Loop, LoopConfig
from autoglm.training.recipe import Recipe
from autoglm.training.samples import Case, Turn
from autoglm.training.stages import tokenizer
from autoglm.training.stages.joint import DecoderConfig, FusionDecoder, TokenBatch, TokenBatches, attention_loss, cell

ICONS, STEPS, TOKENS = 6, 200, 2300


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


def test_a_named_colour_is_learned_in_a_few_hundred_steps(tmp_path: Path) -> None:
    tokenizer.build(tmp_path)
    composer = Composer(tmp_path, GCMA_LAYOUT)
    rates = Recipe.read().align
    model = FusionDecoder.fresh(
        DecoderConfig(hidden=128, layers=2, context=256), composer.tokenizer.get_vocab_size(), seed=4
    )
    batcher = TokenBatches(composer, IdealScreens(1), TOKENS)
    config = LoopConfig("test", STEPS, rates.learning_rate, rates.matrix_rate, 1, warmup=50)
    loop = Loop(model, config, tmp_path, batcher)
    batches = iter(batcher)

    def step() -> tuple[Tensor, dict[str, float]]:
        batch = next(batches)
        logits, added = model(batch)
        return cross_entropy(logits.float(), batch.targets) + attention_loss(batch, added), {}

    loop.run(step)
    assert accuracy(model, batches) >= 0.9


@torch.inference_mode()
def accuracy(model: FusionDecoder, batches: Iterator[TokenBatch]) -> float:
    """Return the share of fresh answers of which every token is the likeliest."""
    right: list[bool] = []
    for _ in range(4):
        batch = next(batches)
        logits, _ = model(batch)
        hits = logits.argmax(-1) == batch.targets
        right += [bool(answer.all()) for answer in hits.split(batch.learned.sum(1).tolist())]
    return sum(right) / len(right)
