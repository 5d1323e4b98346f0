"""Fusion and decoder are trained together on the encoders' cached features: first `align`, then `joint`.

Loss: cross-entropy on the answer, plus, where the generator knows which place on the screen decides
the answer, −log of the attention that half of GCMA's image heads put there (for the token of the
question that looks best), plus cross-entropy on the mean gates, which tell whether a medium matters. Without
the supervised attention the same tasks take many times longer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, cross_entropy, pad

from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.training.fuse_batch import Additions
from autoglm.training.loop import Loop, LoopConfig, LossAndFigures, weights
from autoglm.training.precision import autocast, device
from autoglm.training.samples import SHARES, Sampler, TaskMixture, Turn
from autoglm.training.stages import tokenizer
from autoglm.training.stages.align import align
from autoglm.training.stages.features import FeatureStore
from autoglm.training.stages.fusion_decoder import DecoderConfig, FusionDecoder, save
from autoglm.training.stages.token_batches import TokenBatch, TokenBatches, answers

GRID = 7  # image tokens per side
# First the eye alone, in short cases, where fusion finds places on the screen sooner. Then everything at once.
SCREEN_MIXTURE = TaskMixture({"screen": 1.0}, system_share=0.0)
FULL_MIXTURE = TaskMixture(SHARES, more_turns=(0.3, 0.25, 0.25, 0.2), steps_share=0.15)
WARMUP, COOLDOWN = 100, 0.4  # steps, and the share of them
WEIGHT_DECAY, CLIP = 0.1, 1.0


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One run over fusion and decoder; recipes/nano.yaml explains each field."""

    seed: int
    steps: int
    screen_steps: int
    batch_tokens: int
    batch_targets: int
    learning_rate: float
    matrix_rate: float
    attention_weight: float
    gate_weight: float


def asked(batch: TokenBatch, added: Additions) -> Iterator[tuple[int, Turn, Tensor]]:
    """Yield every turn: its row in the batch, the turn, and which of the enriched tokens [R] are the user's there."""
    for row, (case, prompt) in enumerate(zip(batch.cases, batch.prompts, strict=True)):
        start = 0
        for turn, answer in zip(case.turns, answers(prompt), strict=True):
            yield row, turn, (added.rows[row] >= start) & (added.rows[row] < answer.start)
            start = answer.stop


def attention_loss(batch: TokenBatch, added: Additions | None) -> Tensor:
    """Return the mean −log attention (a scalar) on the right cell, over the turns that have one.

    Two tokens of a turn count: the one that looks best (the name, mostly), and the last before the answer, where
    the decoder finds what was seen without a search.
    """
    if added is None or "image" not in added.enriched.attention:
        return torch.zeros(())
    attention = added.enriched.attention["image"]  # [B, heads, R, S]
    looks = attention[:, : attention.shape[1] // 2].float().mean(1)
    losses = []
    for row, turn, asks in asked(batch, added):
        if turn.reply.look is not None and turn.shown:
            sees = looks[row, asks, turn.image * GRID * GRID + cell(turn.reply.look)].clamp(min=1e-6)
            losses += [-sees.max().log(), -sees[-1].log()]
    return torch.stack(losses).mean() if losses else torch.zeros(())


def gate_loss(batch: TokenBatch, added: Additions | None) -> Tensor:
    """Return the mean cross-entropy (a scalar) of the gates on whether a turn needs the medium, over its text that can
    see it."""
    if added is None:
        return torch.zeros(())
    text = pad(batch.fusion.enriched, (0, 1)).gather(1, added.rows)
    losses = []
    for kind, gates in added.enriched.gates.items():
        wanted = torch.full_like(gates, -1.0, dtype=torch.float32)
        for row, turn, asks in asked(batch, added):
            wanted[row, asks] = float(kind in turn.needs and turn.shown)
        sees = added.rows >= batch.fusion.media[kind].where.min(1, keepdim=True).values
        reads = text & sees & (wanted >= 0)
        losses.append(binary_cross_entropy(gates[reads].float(), wanted[reads]))
    return torch.stack(losses).mean()


def cell(place: tuple[float, float, float, float]) -> int:
    """Return the index of the image token that holds the middle of a box."""
    left, top, right, bottom = place
    row, column = int((top + bottom) / 2 * GRID / 1000), int((left + right) / 2 * GRID / 1000)
    return min(row, GRID - 1) * GRID + min(column, GRID - 1)


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a run over fusion and decoder works on: its folder, the composer and the store of features."""

    workdir: Path
    composer: Composer
    store: FeatureStore

    @classmethod
    def open(cls, workdir: Path) -> Self:
        """Open what the stages before left in `workdir`."""
        tokenizer.build(workdir / "decoder")
        return cls(
            workdir, Composer(workdir / "decoder", GCMA_LAYOUT), FeatureStore.open("train", workdir / "features")
        )

    def load_checkpoint(self, checkpoint: str, decoder: DecoderConfig) -> FusionDecoder:
        """Return the model that a run left in its checkpoint; raises SystemExit where the run has not begun."""
        model = FusionDecoder.fresh(decoder, self.composer.vocabulary, seed=0)
        model.load_state_dict(weights(self.workdir / checkpoint))
        return model


def run_align(decoder: DecoderConfig, config: RunConfig, workdir: Path) -> None:
    """Train from nothing (but the encoders' heads) and leave the run's checkpoint, align.pt, in `workdir`."""
    context = RunContext.open(workdir)
    model = FusionDecoder.fresh(decoder, context.composer.vocabulary, config.seed)
    align(model.fusion, context.store, workdir)
    train("align", model, config, context)


def run(decoder: DecoderConfig, config: RunConfig, workdir: Path) -> None:
    """Go on from align.pt, and write `workdir`/fusion and `workdir`/decoder."""
    context = RunContext.open(workdir)
    model = context.load_checkpoint("align.pt", decoder)
    train("joint", model, config, context)
    save(model, workdir)


AnswerLoss = Callable[[TokenBatch, Tensor], LossAndFigures]


def answer_loss(batch: TokenBatch, logits: Tensor) -> LossAndFigures:
    """Return the cross-entropy of the answer's tokens under `logits` [N, vocabulary], and its figure."""
    loss = cross_entropy(logits.float(), batch.targets)
    return loss, {"answer": loss.item()}


def train(
    name: str, model: FusionDecoder, config: RunConfig, context: RunContext, answer_loss: AnswerLoss = answer_loss
) -> None:
    """Run `config` on `model` in place, from step 0 or from the checkpoint `name`.pt in the context's folder.

    `answer_loss` is the loss on the answer; those on attention and gates are the same in every run.
    """
    where = device()
    sampler = Sampler(context.store, config.seed)
    batches = TokenBatches(context.composer, sampler, config.batch_tokens)
    settings = LoopConfig(name, config.steps, CLIP, partial(schedule, config.steps))
    loop = Loop(model.to(where), optimizers(model, config), settings, context.workdir, batches)
    drawn = iter(batches)

    def step(number: int) -> LossAndFigures:
        first = number - batches.taken  # the step at which the current pool is drawn
        sampler.mixture = SCREEN_MIXTURE if first < config.screen_steps else FULL_MIXTURE
        batch = next(drawn).to(where)
        with autocast(where):
            logits, added = model(batch)
            answer, figures = answer_loss(batch, logits)
            look, gate = attention_loss(batch, added), gate_loss(batch, added)
            weight = len(batch.targets) / config.batch_targets  # a token counts the same in every batch
            loss = answer + config.attention_weight * look + config.gate_weight * gate
            return weight * loss, {**figures, "look": look.item(), "gate": gate.item()}

    loop.run(step)


def optimizers(model: nn.Module, rates: RunConfig) -> list[torch.optim.Optimizer]:
    """Return Muon for what maps activations to activations and AdamW for tables, the head, norms and vectors.

    Only what Muon takes decays. Muon's steps are scaled to the size of AdamW's (`match_rms_adamw`).
    """
    matrices = [
        layer.weight for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "lm_head" not in name
    ]
    taken = {id(weight) for weight in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    return [
        torch.optim.Muon(matrices, rates.matrix_rate, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, rates.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(steps: int, step: int) -> float:
    """Return the factor of the peak rates: warm up, stay, and go down in a straight line over the last COOLDOWN."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (COOLDOWN * steps))
