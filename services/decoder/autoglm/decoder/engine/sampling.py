"""From logits to tokens, as transformers' logits processors do it, in this order: penalties,
temperature, top-k, top-p. Log probabilities are of the model, before any of them."""

import torch
from torch import Tensor

from autoglm.decoder.engine.sequence import Chosen, Sampling, Sequence


def choose(logits: Tensor, sequence: Sequence) -> Chosen:
    """Return the next token of `sequence` from its logits [vocabulary], float32."""
    sampling = sequence.sampling
    token = _draw(_penalised(logits, sequence), sampling, sequence.generator)
    if sampling.top_logprobs is None:
        return Chosen(token)
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(sampling.top_logprobs) if sampling.top_logprobs else (logprobs[:0], logprobs[:0])
    top = tuple(zip((int(i) for i in ids.tolist()), values.tolist(), strict=True))
    return Chosen(token, float(logprobs[token]), top)


def note(sequence: Sequence, token: int) -> None:
    """Count a generated token for the penalties."""
    if sequence.counts is not None:
        sequence.counts[token] += 1


def _penalised(logits: Tensor, sequence: Sequence) -> Tensor:
    sampling = sequence.sampling
    if not (sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0):
        return logits
    if sequence.counts is None:
        sequence.counts = torch.zeros_like(logits)
    counts = sequence.counts
    if sampling.repetition_penalty != 1.0:
        seen = counts > 0
        seen[sequence.prompt.token_ids] = True
        factor = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)
    return logits - counts * sampling.frequency_penalty - (counts > 0) * sampling.presence_penalty


def _draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if sampling.top_k:
        floor = logits.topk(min(sampling.top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < floor, float("-inf"))
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        ordered[ordered.cumsum(0) - ordered >= sampling.top_p] = 0  # the first token past the mass stays
        probabilities = torch.zeros_like(probabilities).scatter(0, order, ordered)
    return int(torch.multinomial(probabilities.cpu(), 1, generator=generator))
