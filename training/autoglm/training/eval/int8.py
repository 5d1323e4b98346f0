"""`autoglm eval int8`: what INT8 costs and gains on this machine, which should be idle.

Speed of vision encoder and decoder: both forms in every round, on one thread. Accuracy of the vision encoder: linear
probes fitted on float features read float and INT8 features. The decoder's accuracy is in the model card.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from autoglm.decoder.engine.request import Request, SamplingConfig
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.sequence import Sequence as Generation
from autoglm.fusion.prompt import PromptMessage
from autoglm.training.data.screens import Screen
from autoglm.training.eval.answering import EvalModel
from autoglm.training.eval.speed import clocked, threads
from autoglm.training.measured import Figure
from autoglm.training.progress import track
from autoglm.training.stages.vision_data import BACKGROUND, IGNORE, collate, screens_of
from autoglm.vision.models.mobilevit import MobileVit

SEED = 29
TRAIN_SCREENS, HELD_OUT_SCREENS, BATCH = 1500, 1000, 25
SIDE, STEPS, DECAY = 7, 60, 1e-4
ROUNDS, BATCHES, STREAMS, TOKENS = 15, (1, 8), (1, 8, 32), 20

Field = Literal["name", "colour", "on"]
FIELDS: tuple[Field, ...] = ("name", "colour", "on")


@dataclass(frozen=True, slots=True)
class Cells:
    """Labels of every cell of n screens, int64 [n · 49] each; `IGNORE` where a question has no answer."""

    name: Tensor
    colour: Tensor
    on: Tensor

    @classmethod
    def of(cls, screens: Sequence[Screen]) -> "Cells":
        """Say what is in each cell; an element without a name of its own is not asked about."""
        batch = collate(list(screens))
        column, row = (batch.centre * SIDE).long().clamp(0, SIDE - 1).unbind(1)
        where = batch.index * SIDE**2 + row * SIDE + column
        total = len(screens) * SIDE**2
        name = torch.full((total,), BACKGROUND).index_put((where,), batch.name)
        colour, on = (torch.full((total,), IGNORE).index_put((where,), of) for of in (batch.colour, batch.on))
        # A row's name is next to its switch, not in the switch's own cell.
        return cls(name.masked_fill(on != IGNORE, IGNORE), colour, on)

    def asked(self) -> list[tuple[str, Field, Tensor]]:
        """Return each question, the labels that answer it, and which cells [n, cells] it is asked of."""
        empty = self.name == BACKGROUND
        return [
            ("name of what is there", "name", ~empty & (self.name != IGNORE)),
            ("nothing is there", "name", empty),
            ("colour", "colour", self.colour != IGNORE),
            ("switch", "on", self.on != IGNORE),
        ]


def encode(model: MobileVit, screens: Sequence[Screen], what: str) -> Tensor:
    """Return the features [n · 49, width] of `screens`."""
    starts = track(range(0, len(screens), BATCH), what, "batch")
    pixels = (torch.stack([model.preprocessing.tensor(s.image) for s in screens[i : i + BATCH]]) for i in starts)
    return torch.cat([model.features(batch).flatten(0, 1) for batch in pixels])


def fit(features: Tensor, labels: Tensor) -> nn.Linear:
    """Return a linear classifier of `features` [n, width] by `labels` [n] where they are known, fitted with L-BFGS."""
    features, labels = features[labels != IGNORE], labels[labels != IGNORE]
    probe = nn.Linear(features.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(probe(features), labels) + DECAY * probe.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return probe.requires_grad_(False)


def accuracy(folder: Path) -> str:
    """Return a Markdown table of what probes read in float and INT8 features of held-out screens."""
    torch.manual_seed(SEED)
    exact, rounded = (MobileVit.from_pretrained(folder, int8=int8) for int8 in (False, True))
    train, held_out = screens_of("train", SEED, TRAIN_SCREENS), screens_of("heldout", SEED + 1, HELD_OUT_SCREENS)
    seen, known, asked = encode(exact, train, "train, float"), Cells.of(train), Cells.of(held_out)
    scale = seen.std(0).clamp(min=1e-6)
    probes = {field: fit(seen / scale, getattr(known, field)) for field in FIELDS}
    features = [encode(model, held_out, what) / scale for model, what in ((exact, "float"), (rounded, "INT8"))]
    lines = ["| Question | cells | float | INT8 | same answer |", "|---|---|---|---|---|"]
    for question, field, cells in asked.asked():
        labels = getattr(asked, field)[cells]
        read = [probes[field](each[cells]).argmax(-1) for each in features]
        shares = [(read[0] == labels), (read[1] == labels), (read[0] == read[1])]
        figures = " | ".join(f"{share.float().mean():.4f}" for share in shares)
        lines.append(f"| {question} | {len(labels)} | {figures} |")
    cosine = cosine_similarity(features[0], features[1], dim=-1).mean()
    return "\n".join([*lines, "", f"Mean cosine of the features: {cosine:.4f}"])


Work = Callable[[], object]


def speed(bundle: Path) -> str:
    """Return a Markdown table of milliseconds in float and in INT8, and how many times as fast INT8 is."""
    lines = [f"| {ROUNDS} rounds, one thread | float ms | INT8 ms | × |", "|---|---|---|---|"]
    with threads(1):
        for name, exact, rounded in [*_vision_work(bundle / "vision"), *_decoder_work(bundle)]:
            pairs = [(1000 * clocked(exact), 1000 * clocked(rounded)) for _ in range(ROUNDS + 1)][1:]
            figures = [Figure.of(values) for values in (*zip(*pairs, strict=True), [a / b for a, b in pairs])]
            lines.append(f"| {name} | {' | '.join(map(str, figures))} |")
    return "\n".join(lines)


def _vision_work(folder: Path) -> list[tuple[str, Work, Work]]:
    exact, rounded = (MobileVit.from_pretrained(folder, int8=int8) for int8 in (False, True))
    side, work = exact.preprocessing.side, list[tuple[str, Work, Work]]()
    for n in BATCHES:
        pixels = torch.rand(n, 3, side, side)
        work.append((f"vision, {n} at a time", partial(exact.features, pixels), partial(rounded.features, pixels)))
    return work


def _decoder_work(bundle: Path) -> list[tuple[str, Work, Work]]:
    exact, rounded = (EvalModel.load(bundle, int8=int8) for int8 in (False, True))
    name = f"decoder, {TOKENS} tokens each, conversations at a time: "
    return [(f"{name}{n}", _generation(exact, n), _generation(rounded, n)) for n in STREAMS]


def _generation(model: EvalModel, streams: int) -> Work:
    """Return decoding passes behind a prompt of text; which tokens they read does not matter."""
    runner, prompt = model.runner(streams), model.composer.compose([PromptMessage("user", ("你好" * 50,))], None)
    request = Request(prompt, SamplingConfig(temperature=0), runner.context)
    running = [Generation(request) for _ in range(streams)]
    for slot, sequence in enumerate(running):
        runner.prepare(sequence)
        runner.prefill(sequence, slot, sequence.num_tokens)
        sequence.output.append(0)
    return partial(_decode, runner, running)


def _decode(runner: Runner, running: Sequence[Generation]) -> None:
    for sequence in running:
        sequence.num_computed_tokens = len(sequence.request.prompt.token_ids)
    for _ in range(TOKENS):
        runner.decode(running)
        for sequence in running:
            sequence.num_computed_tokens += 1
