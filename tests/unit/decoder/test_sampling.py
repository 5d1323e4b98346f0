"""From logits to tokens: what each parameter does, a broken row alone, and transformers' own processors beside ours."""

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from autoglm.decoder.engine.request import ChosenToken, Request, SamplingConfig
from autoglm.decoder.engine.sampling import BrokenLogits, advance, choose
from autoglm.decoder.engine.sequence import Sequence
from autoglm.fusion.prompt import Prompt


def asking(sampling: SamplingConfig, output: tuple[int, ...] = ()) -> Sequence:
    """Return a sequence that has said `output` behind a prompt of token 0."""
    sequence = Sequence(Request(Prompt([0], (), ""), sampling, 10))
    sequence.output = list(output)
    return sequence


def chosen(logits: list[float], sampling: SamplingConfig, *output: int) -> ChosenToken:
    sequence = asking(sampling)
    for token in output:  # what it says now counts from the first step on
        choose(torch.tensor([logits]), [sequence])
        advance(sequence, token)
    (one,) = choose(torch.tensor([logits]), [sequence])
    assert isinstance(one, ChosenToken)
    return one


def test_penalties_and_bias_move_the_choice() -> None:
    logits = [0.0, 3.0, 2.5, 2.4]
    assert chosen(logits, SamplingConfig(temperature=0)).token_id == 1
    assert chosen(logits, SamplingConfig(temperature=0, presence_penalty=1.0), 1).token_id == 2
    assert chosen(logits, SamplingConfig(temperature=0, frequency_penalty=0.4), 1, 1, 2).token_id == 3
    assert chosen(logits, SamplingConfig(temperature=0, repetition_penalty=1.5), 1).token_id == 2
    assert chosen(logits, SamplingConfig(temperature=0, logit_bias={3: 1.0, 1: -0.1})).token_id == 3


@pytest.mark.parametrize("penalty", [0.0, 1e-300, 1e-38, 1e-20])
@pytest.mark.parametrize("temperature", [0, 1])
def test_the_least_repetition_penalties_leave_numbers(penalty: float, temperature: float) -> None:
    config = SamplingConfig(temperature=temperature, repetition_penalty=penalty, top_logprobs=2, seed=1)
    assert chosen([0.0, 3.0, -2.0, 5.0], config, 1, 2).token_id == 1


def test_top_k_top_p_and_min_p_keep_the_likeliest() -> None:
    logits = [0.0, 3.0, 2.9, -1.0]
    assert {chosen(logits, SamplingConfig(top_k=2, seed=seed)).token_id for seed in range(40)} == {1, 2}
    assert {chosen(logits, SamplingConfig(top_p=0.3, seed=seed)).token_id for seed in range(40)} == {1}
    assert {chosen(logits, SamplingConfig(top_p=0.0, seed=seed)).token_id for seed in range(40)} == {1}
    assert {chosen(logits, SamplingConfig(min_p=0.5, seed=seed)).token_id for seed in range(40)} == {1, 2}


@pytest.mark.parametrize(
    ("sampling", "theirs"),
    [
        (SamplingConfig(temperature=0.7), [TemperatureLogitsWarper(0.7)]),
        (SamplingConfig(top_k=5), [TopKLogitsWarper(5)]),
        (SamplingConfig(temperature=1.3, top_p=0.8), [TemperatureLogitsWarper(1.3), TopPLogitsWarper(0.8)]),
        (
            SamplingConfig(top_k=9, top_p=0.7, min_p=0.2),
            [TopKLogitsWarper(9), TopPLogitsWarper(0.7), MinPLogitsWarper(0.2)],
        ),
        (SamplingConfig(repetition_penalty=1.4), [RepetitionPenaltyLogitsProcessor(1.4)]),
    ],
)
def test_tokens_come_as_often_as_transformers_would_draw_them(sampling: SamplingConfig, theirs: list[object]) -> None:
    torch.manual_seed(2)
    logits, draws = 2 * torch.randn(12), 4000
    wanted = LogitsProcessorList(theirs)(torch.tensor([[0]]), logits[None].clone())[0].softmax(-1)
    sequence = asking(
        SamplingConfig(**{name: getattr(sampling, name) for name in SamplingConfig.__slots__} | {"seed": 3})
    )
    rows = logits.expand(draws, -1)
    tokens = [one.token_id for one in choose(rows, [sequence] * draws) if isinstance(one, ChosenToken)]
    seen = torch.bincount(torch.tensor(tokens), minlength=len(logits)) / draws
    assert not seen[wanted == 0].any()
    torch.testing.assert_close(seen, wanted, atol=5 * 0.5 / draws**0.5, rtol=0)  # five standard deviations at most


def test_logprobs_are_the_models() -> None:
    event = chosen([0.0, 3.0, 2.0], SamplingConfig(temperature=0, top_logprobs=2, logit_bias={1: 0.5}))
    expected = torch.tensor([0.0, 3.0, 2.0]).log_softmax(-1)
    assert event.logprob == pytest.approx(expected[1].item())
    assert [token for token, _ in event.top] == [1, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [torch.tensor([0.0, torch.nan, 1.0]), torch.full((3,), -torch.inf)])
def test_a_broken_row_fails_alone(broken: Tensor, temperature: float) -> None:
    sequences = [asking(SamplingConfig(temperature=temperature, seed=1)) for _ in range(3)]
    first, second, third = choose(
        torch.stack([torch.tensor([0.0, 90.0, 0.0]), broken, torch.tensor([90.0, 0, 0])]), sequences
    )
    assert isinstance(second, BrokenLogits)
    assert (first, third) == (ChosenToken(1), ChosenToken(0))
