"""Fusion and decoder are trained together on the encoders' cached features: first `align`, then `joint`.

Loss: cross-entropy on the answer, plus, where the generator knows which place on the screen decides
the answer, −log of the attention that half of GCMA's image heads put there (for the token of the
question that looks best), plus cross-entropy on the mean gates, which tell whether a medium matters. Without
the supervised attention the same tasks take many times longer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, cross_entropy, pad
from transformers.models.glm import GlmConfig, GlmForCausalLM

from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.init import initialise, initialise_positions
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.fusion.gcma.model import GcmaConfig, GcmaFusion
from autoglm.fusion.prompt import Prompt
from autoglm.training.fuse_batch import Additions, FusionBatch, collate, fuse_batch
from autoglm.training.loop import Loop, LoopConfig, Position, weights
from autoglm.training.samples import SHARES, Case, Sampler, TaskMixture, Turn
from autoglm.training.stages import tokenizer
from autoglm.training.stages.align import align
from autoglm.training.stages.features import FeatureStore

GRID = 7
POOL = 384  # cases that are sorted by length before they are cut into batches
# First the eye alone, in short cases, where fusion finds places on the screen sooner. Then everything at once.
SCREEN_MIXTURE = TaskMixture({"screen": 1.0}, system_share=0.0)
FULL_MIXTURE = TaskMixture(SHARES, more_turns=(0.3, 0.25, 0.25, 0.2), steps_share=0.15)
EMBEDDING_STD = 1.0


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes of the decoder; recipes/nano.yaml explains each field."""

    hidden: int
    layers: int
    context: int


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


class FusionDecoder(nn.Module):
    """Fusion and decoder side by side, as they are trained and saved."""

    def __init__(self, fusion: GcmaFusion, decoder: GlmForCausalLM) -> None:
        super().__init__()
        self.fusion, self.decoder = fusion, decoder

    @classmethod
    def fresh(cls, config: DecoderConfig, vocabulary: int, seed: int) -> "FusionDecoder":
        """Return an untrained model, initialised by `seed`."""
        torch.manual_seed(seed)
        decoder = GlmForCausalLM(glm_config(config, vocabulary))
        fusion = GcmaFusion(GcmaConfig(text_width=config.hidden))
        initialise(decoder)
        initialise(fusion)
        with torch.no_grad():
            nn.init.normal_(decoder.model.embed_tokens.weight, std=EMBEDDING_STD)
            for layer in decoder.model.layers:  # an untrained layer adds nothing: a token is itself to the end
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
        initialise_positions(fusion)
        return cls(fusion, decoder)

    @classmethod
    def saved(cls, folder: Path) -> "FusionDecoder":
        """Return what `save` wrote into `folder`, in float32."""
        decoder = GlmForCausalLM.from_pretrained(folder / "decoder", dtype=torch.float32, local_files_only=True)
        return cls(GcmaFusion.from_pretrained(folder / "fusion"), decoder)

    def forward(self, batch: "TokenBatch") -> tuple[Tensor, Additions | None]:
        """Return logits [N, vocabulary] for the N tokens that are learned, and what the fusion added."""
        embeddings = self.decoder.model.embed_tokens(batch.token_ids)
        fused, added = fuse_batch(self.fusion, embeddings, batch.fusion)
        hidden = self.decoder.model(inputs_embeds=fused, use_cache=False).last_hidden_state
        return self.decoder.lm_head(hidden[:, :-1][batch.learned]), added


def glm_config(config: DecoderConfig, vocabulary: int) -> GlmConfig:
    """Return the decoder's config: GLM as in transformers, at the size of `config`."""
    return GlmConfig(
        vocab_size=-(-vocabulary // 64) * 64,
        hidden_size=config.hidden,
        intermediate_size=3 * config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.hidden // 64,
        num_key_value_heads=max(1, config.hidden // 128),
        head_dim=64,
        max_position_embeddings=config.context,
        attention_bias=True,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Cases side by side: token ids and labels [B, T] (−100 where nothing is learned)."""

    token_ids: Tensor
    labels: Tensor
    fusion: FusionBatch
    prompts: Sequence[Prompt]
    cases: Sequence[Case]

    def to(self, device: torch.device) -> "TokenBatch":
        """Return the same with its tensors on `device`."""
        tensors = self.token_ids.to(device), self.labels.to(device), self.fusion.to(device)
        return TokenBatch(*tensors, self.prompts, self.cases)

    @property
    def learned(self) -> Tensor:
        """Return [B, T − 1]: whether the next token is learned."""
        return self.labels[:, 1:] != -100

    @property
    def targets(self) -> Tensor:
        """Return [N], the tokens that are learned."""
        return self.labels[:, 1:][self.learned]


class CaseSource(Protocol):
    """Where cases come from."""

    rng: np.random.Generator

    def draw(self) -> Case:
        """Draw one."""


Row = tuple[Case, Prompt, list[int]]


def _length(row: Row) -> int:
    return len(row[1].token_ids) + len(row[2])


class TokenBatches:
    """Turns cases into batches of like length, each of at most `tokens` tokens, padding included."""

    def __init__(self, composer: Composer, sampler: CaseSource, tokens: int) -> None:
        self.composer, self.sampler, self.tokens = composer, sampler, tokens
        self.stop = composer.tokenizer.encode("<|user|>").ids
        self._position = Position(sampler.rng.bit_generator.state, 0)

    def position(self) -> Position:
        """Return where the next batch comes from."""
        return self._position

    def seek(self, position: Position) -> None:
        """Let the next batch come from there; only before the first one is drawn."""
        self.sampler.rng.bit_generator.state = position.rng
        self._position = position

    def __iter__(self) -> Iterator[TokenBatch]:
        rng = self.sampler.rng
        while True:
            pool = self._pack(self.sampler.draw() for _ in range(POOL))
            order, taken = rng.permutation(len(pool)), self._position.taken
            for number in order[taken:]:
                taken += 1
                last = taken == len(pool)
                self._position = Position(rng.bit_generator.state, 0) if last else replace(self._position, taken=taken)
                yield self._batch(pool[number])

    def of(self, cases: Iterable[Case]) -> Iterator[TokenBatch]:
        """Yield batches of just these cases, the shortest first."""
        return map(self._batch, self._pack(cases))

    def _pack(self, cases: Iterable[Case]) -> list[list[Row]]:
        batches: list[list[Row]] = [[]]
        for row in sorted(map(self._row, cases), key=_length):
            if (len(batches[-1]) + 1) * _length(row) > self.tokens:
                batches.append([])
            batches[-1].append(row)
        return batches

    def _row(self, case: Case) -> Row:
        prompt = self.composer.compose(case.messages, case.thinking)
        answer = case.text.removeprefix(prompt.echo)
        return case, prompt, [*self.composer.tokenizer.encode(answer, add_special_tokens=False).ids, *self.stop]

    def _batch(self, rows: Sequence[Row]) -> TokenBatch:
        length = max(map(_length, rows))
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), -100)
        for row, (case, prompt, answer) in enumerate(rows):
            start = len(prompt.token_ids)
            ids[row, : start + len(answer)] = torch.tensor(prompt.token_ids + answer)
            for turn, past in zip(case.turns[:-1], answers(prompt)[:-1], strict=True):
                if turn.shown:  # with the token that ends it
                    labels[row, past.start : past.stop + 1] = ids[row, past.start : past.stop + 1]
            labels[row, start : start + len(answer)] = torch.tensor(answer)
        prompts = [prompt for _, prompt, _ in rows]
        return TokenBatch(ids, labels, collate(prompts, length), prompts, [case for case, _, _ in rows])


def answers(prompt: Prompt) -> list[slice]:
    """Return where each answer of a conversation stands; the last one starts at the prompt's end (or at its echo)."""
    past = [slice(run.start, run.stop) for run in prompt.runs if not run.enriched]
    end = len(prompt.token_ids)
    return past if past and past[-1].stop == end else [*past, slice(end, end)]


def asked(batch: TokenBatch, added: Additions) -> Iterator[tuple[int, Turn, Tensor]]:
    """Yield every turn: its row in the batch, the turn, and which of the enriched tokens [R] are the user's there."""
    for row, (case, prompt) in enumerate(zip(batch.cases, batch.prompts, strict=True)):
        start = 0
        for turn, answer in zip(case.turns, answers(prompt), strict=True):
            yield row, turn, (added.rows[row] >= start) & (added.rows[row] < answer.start)
            start = answer.stop


def attention_loss(batch: TokenBatch, added: Additions | None) -> Tensor:
    """Return the mean −log attention on the right cell, over the turns that have one.

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
    """Return the mean cross-entropy of the gates on whether a turn needs the medium, over its text that can see it."""
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


def begin(decoder: DecoderConfig, config: RunConfig, workdir: Path) -> None:
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


LossAndFigures = tuple[Tensor, dict[str, float]]
AnswerLoss = Callable[[TokenBatch, Tensor], LossAndFigures]


def answer_loss(batch: TokenBatch, logits: Tensor) -> LossAndFigures:
    """Return the cross-entropy of the answer's tokens under `logits` [N, vocabulary], and its figure."""
    loss = cross_entropy(logits.float(), batch.targets)
    return loss, {"answer": loss.item()}


def train(
    name: str, model: FusionDecoder, config: RunConfig, context: RunContext, grade: AnswerLoss = answer_loss
) -> None:
    """Run `config` on `model` in place, from step 0 or from the checkpoint `name`.pt in the context's folder.

    `grade` is the loss on the answer; those on attention and gates are the same in every run.
    """
    sampler = Sampler(context.store, config.seed)
    batcher = TokenBatches(context.composer, sampler, config.batch_tokens)
    settings = LoopConfig(name, config.steps, config.learning_rate, config.matrix_rate, config.seed)
    loop = Loop(model, settings, context.workdir, batcher)
    batches = iter(batcher)

    def step() -> LossAndFigures:
        drawn = loop.step - batcher.position().taken  # the step at which the pool at hand is drawn
        sampler.mixture = SCREEN_MIXTURE if drawn < config.screen_steps else FULL_MIXTURE
        batch = next(batches).to(loop.accelerator.device)
        logits, added = model(batch)
        answer, figures = grade(batch, logits)
        look, gate = attention_loss(batch, added), gate_loss(batch, added)
        weight = len(batch.targets) / config.batch_targets  # a token counts the same in every batch
        loss = answer + config.attention_weight * look + config.gate_weight * gate
        return weight * loss, figures | {"look": look.item(), "gate": gate.item()}

    loop.run(step)


def save(model: FusionDecoder, folder: Path) -> None:
    """Write both parts in Hugging Face format, bf16, with the tokenizer. The decoder becomes bf16."""
    model.fusion.save_pretrained(folder / "fusion")
    decoder = model.decoder
    words = tokenizer.build(folder / "decoder")
    stops = [words.token_to_id(text) for text in tokenizer.STOPS]
    decoder.generation_config.eos_token_id = stops
    decoder.config.eos_token_id = stops
    decoder.to(torch.bfloat16).save_pretrained(folder / "decoder")
