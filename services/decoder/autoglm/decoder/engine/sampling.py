"""From logits to tokens for a whole batch, as transformers' logits processors do it, in this order: bias, penalties,
temperature, top-k, top-p, min-p. Log probabilities are of the model, before any of them."""

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from autoglm.common.errors import InternalError, InvalidRequest, MeshError
from autoglm.decoder.engine.request import ChosenToken, SamplingConfig
from autoglm.decoder.engine.sequence import Sequence

LARGEST = 1e30  # logits stay below it, so that their differences are numbers
NOT_A_NUMBER = "the model's output is not a number; check the weights with `autoglm bundle check`"


class BrokenLogits(InternalError):
    """The model's logits for one request are not numbers."""

    def __init__(self, message: str = NOT_A_NUMBER) -> None:
        super().__init__(message)


def choose(logits: Tensor, sequences: Rows[Sequence]) -> list[ChosenToken | Exception]:
    """Return the next token of each sequence from `logits` [n, vocabulary], float32.

    A row fails alone: one that has a NaN or no finite logit gets a BrokenLogits instead of a token, and one whose
    grammar allows nothing more its InvalidRequest.
    """
    rows = [_allowed(row, sequence) for row, sequence in zip(logits, sequences, strict=True)]
    broken: dict[int, MeshError] = {number: row for number, row in enumerate(rows) if isinstance(row, MeshError)}
    adjusted = torch.stack([logits[number] if isinstance(row, Exception) else row for number, row in enumerate(rows)])
    best, tokens = adjusted.max(-1)  # a NaN wins
    broken |= {number: BrokenLogits() for number, sound in enumerate(best.isfinite().tolist()) if not sound}
    warm = [row for row, sequence in enumerate(sequences) if sequence.request.sampling.temperature]
    drawn = [row for row in warm if row not in broken]
    if drawn:
        tokens[drawn] = _draw(adjusted[drawn], [sequences[row] for row in drawn])
    return [
        broken.get(row) or _chosen(logits[row], token, sequence.request.sampling.top_logprobs)
        for row, (sequence, token) in enumerate(zip(sequences, tokens.tolist(), strict=True))
    ]


def advance(sequence: Sequence, token: int) -> None:
    """Bring penalties, reasoning and grammar to after a generated token.

    Raises InternalError if the grammar does not allow it, InvalidRequest if the grammar cannot go on after it.
    """
    if sequence.counts is not None:
        sequence.counts[token] += 1
    thinking = sequence.thinking
    silent = thinking is not None and thinking.inside
    if thinking is not None:
        thinking.advance(token, first=len(sequence.output) == 1)
    if sequence.grammar is not None and not silent:
        sequence.grammar.accept(token)


def _chosen(logits: Tensor, token: int, rivals: int | None) -> ChosenToken:
    if rivals is None:
        return ChosenToken(token)
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(rivals)
    return ChosenToken(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _allowed(logits: Tensor, sequence: Sequence) -> Tensor | InvalidRequest:
    """Return one row [vocabulary] with its bias and penalties, and −∞ where reasoning or grammar allow nothing."""
    adjusted, thinking = _adjusted(logits, sequence), sequence.thinking
    if thinking is not None and thinking.must_close:
        only = torch.full_like(adjusted, float("-inf"))
        closes = thinking.thinking.closes
        only[closes] = adjusted[closes].clamp(min=-LARGEST)  # a NaN stays one
        return only
    if sequence.grammar is None or (thinking is not None and thinking.inside):
        return adjusted
    try:
        return sequence.grammar.restrict(adjusted)
    except InvalidRequest as error:
        return error


def _adjusted(logits: Tensor, sequence: Sequence) -> Tensor:
    """Return one row [vocabulary] with its bias and penalties."""
    sampling = sequence.request.sampling
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias), device=logits.device)
        logits = logits.index_add(0, ids, torch.tensor(list(sampling.logit_bias.values()), device=logits.device))
    if not (sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0):
        return logits
    if sequence.counts is None:
        sequence.counts = torch.zeros_like(logits)
    counts = sequence.counts
    if sampling.repetition_penalty != 1.0:
        seen = counts > 0
        seen[sequence.request.prompt.token_ids] = True
        factor = max(sampling.repetition_penalty, 1 / LARGEST)  # as float32, the least numbers above 0 are 0
        penalized = torch.where(logits > 0, logits / factor, logits * factor).clamp(-LARGEST, LARGEST)
        logits = torch.where(seen, penalized, logits)
    return logits - counts * sampling.frequency_penalty - (counts > 0) * sampling.presence_penalty


def _draw(logits: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """Draw a token for each row of `logits` [n, vocabulary], each with its own generator: [n].

    A uniform number picks from the cumulated probabilities of what is kept, the likeliest first.
    """

    def each(values: Rows[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    samplings = [sequence.request.sampling for sequence in sequences]
    ordered, order = logits.sort(dim=-1, descending=True)
    scaled = ordered.double() / each([sampling.temperature for sampling in samplings])
    scaled = scaled.masked_fill(scaled < _least_kept(scaled, samplings), float("-inf"))
    shares = scaled.softmax(-1)
    before = shares.cumsum(-1) - shares
    dropped = before >= each([sampling.top_p for sampling in samplings])  # the first token past the mass stays
    dropped |= shares < shares[:, :1] * each([sampling.min_p for sampling in samplings])
    dropped[:, 0] = False
    mass = shares.masked_fill(dropped, 0).cumsum(-1)
    uniform = [torch.rand((), generator=_generator(sequence), dtype=torch.float64).item() for sequence in sequences]
    places = torch.searchsorted(mass, each(uniform) * mass[:, -1:], right=True)
    return order.gather(1, places)[:, 0]


def _generator(sequence: Sequence) -> torch.Generator:
    """Return a sequence's own generator, made at its first token."""
    if sequence.generator is None:
        sequence.generator, seed = torch.Generator(), sequence.request.sampling.seed
        sequence.generator.seed() if seed is None else sequence.generator.manual_seed(seed % 2**63)
    return sequence.generator


def _least_kept(ordered: Tensor, samplings: Rows[SamplingConfig]) -> Tensor:
    """Return the smallest value [n, 1] that top-k keeps of `ordered` [n, vocabulary]; its equals stay too."""
    last = [min(sampling.top_k or ordered.shape[1], ordered.shape[1]) - 1 for sampling in samplings]
    return ordered.gather(1, torch.tensor(last, device=ordered.device)[:, None])
