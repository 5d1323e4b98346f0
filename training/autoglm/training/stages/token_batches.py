"""Cases as padded batches of tokens: what is learned, and where a run continues after it was cut."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from autoglm.fusion.compose import Composer
from autoglm.fusion.prompt import Prompt
from autoglm.training.fuse_batch import FusionBatch, collate
from autoglm.training.samples import Case

POOL = 384  # cases that are sorted by length before they are cut into batches


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


Tokenized = tuple[Case, Prompt, list[int]]  # with the token ids of the answer


def _length(row: Tokenized) -> int:
    return len(row[1].token_ids) + len(row[2])


class TokenBatches:
    """Turns cases into batches of like length, each of at most `tokens` tokens, padding included."""

    def __init__(self, composer: Composer, sampler: CaseSource, tokens: int) -> None:
        self.composer, self.sampler, self.tokens = composer, sampler, tokens
        self.stop = composer.tokenizer.encode("<|user|>").ids
        self._pool_rng, self.taken = sampler.rng.bit_generator.state, 0

    def state_dict(self) -> dict[str, Any]:
        """Return where the next batch comes from: the generator's state before its pool, and how many batches of the
        pool are taken."""
        return {"rng": self._pool_rng, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next batch come from there; only before the first one is drawn."""
        self._pool_rng, self.taken = state["rng"], state["taken"]
        self.sampler.rng.bit_generator.state = self._pool_rng

    def __iter__(self) -> Iterator[TokenBatch]:
        rng = self.sampler.rng
        while True:
            pool = self._pack(self.sampler.draw() for _ in range(POOL))
            for number in rng.permutation(len(pool))[self.taken :]:
                self.taken += 1
                if self.taken == len(pool):
                    self._pool_rng, self.taken = rng.bit_generator.state, 0
                yield self._batch(pool[number])

    def of(self, cases: Iterable[Case]) -> Iterator[TokenBatch]:
        """Yield batches of just these cases, the shortest first."""
        return map(self._batch, self._pack(cases))

    def _pack(self, cases: Iterable[Case]) -> list[list[Tokenized]]:
        batches: list[list[Tokenized]] = [[]]
        for row in sorted(map(self._row, cases), key=_length):
            if (len(batches[-1]) + 1) * _length(row) > self.tokens:
                batches.append([])
            batches[-1].append(row)
        return batches

    def _row(self, case: Case) -> Tokenized:
        prompt = self.composer.compose(case.messages, case.thinking)
        answer = case.text.removeprefix(prompt.echo)
        return case, prompt, [*self.composer.tokenizer.encode(answer, add_special_tokens=False).ids, *self.stop]

    def _batch(self, rows: Sequence[Tokenized]) -> TokenBatch:
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
    """Return the place of each answer in a conversation; the last one starts at the prompt's end (or at its echo)."""
    past = [slice(run.start, run.stop) for run in prompt.runs if not run.enriched]
    end = len(prompt.token_ids)
    return past if past and past[-1].stop == end else [*past, slice(end, end)]
