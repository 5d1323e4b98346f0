"""How long decoders take side by side: in every round each model answers the same questions, so that what slows the
machine down slows all of them down.

Timed is what the decoder service does for one conversation alone, in float32, by the engine's own forward passes.
`token` is the mean time of a decoding pass and the choice of its token. `answer` is all that it takes from the
conversation to the end of an answer of `TOKENS` tokens: template and tokenizer, fusion, prefill, and a pass for each
token. `answer with encoder` adds what the encoder of the pictures takes before that: the same for every model, so it is
timed once a round.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from autoglm.decoder.engine.request import ChosenToken, Request, SamplingConfig
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.sampling import choose
from autoglm.decoder.engine.sequence import Sequence as Generation
from autoglm.fusion.compose import Composer
from autoglm.training.eval.answering import EvalModel
from autoglm.training.measured import Figure
from autoglm.training.progress import track
from autoglm.training.samples import Case

TOKENS = 20
Seconds = Mapping[str, float]  # by what is timed


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of a model, and how many times as fast as another one it is, by what is timed."""

    milliseconds: Mapping[str, Figure]
    faster: Mapping[str, Figure]


def race(
    eval_models: Mapping[str, EvalModel], than: str, cases: Sequence[Case], encode: Callable[[], object], rounds: int
) -> dict[str, Times]:
    """Time `eval_models` on `cases` for `rounds` rounds, after one that does not count, against the model `than`.

    `encode` is the encoder's work for one case.
    """
    runners = {name: (model.composer, model.runner(slots=1)) for name, model in eval_models.items()}
    names, seconds = list(eval_models), {name: list[Seconds]() for name in eval_models}
    for number in track(range(rounds + 1), "rounds", "round"):
        encoding = clocked(encode)
        shift = number % len(names)  # nobody is always the first
        for name in names[shift:] + names[:shift]:
            seconds[name].append(_round(*runners[name], cases, encoding))
    counted = {name: each[1:] for name, each in seconds.items()}
    return {name: _times(each, counted[than]) for name, each in counted.items()}


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch compute on `number` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _times(ours: Sequence[Seconds], theirs: Sequence[Seconds]) -> Times:
    pairs = list(zip(ours, theirs, strict=True))
    milliseconds = {what: Figure.of([1000 * each[what] for each in ours]) for what in ours[0]}
    faster = {what: Figure.of([their[what] / our[what] for our, their in pairs]) for what in ours[0]}
    return Times(milliseconds, faster)


def _round(composer: Composer, runner: Runner, cases: Sequence[Case], encoding: float) -> Seconds:
    """Return the mean seconds of each thing that is timed, over `cases`."""
    token, answer = (
        sum(each) / len(cases) for each in zip(*(_answer(composer, runner, c) for c in cases), strict=True)
    )
    return {"token": token, "answer": answer, "answer with encoder": answer + encoding}


def _answer(composer: Composer, runner: Runner, case: Case) -> tuple[float, float]:
    """Answer one case; return the seconds of a token and of the whole answer."""
    start = time.perf_counter()
    prompt = composer.compose(case.messages, case.thinking)
    sequence = Generation(Request(prompt, SamplingConfig(temperature=0), runner.context))
    runner.prepare(sequence)
    _choose(runner.prefill(sequence, 0, sequence.num_tokens), sequence)
    first = time.perf_counter()
    for _ in range(TOKENS):
        _choose(runner.decode([sequence]), sequence)
        sequence.num_computed_tokens += 1
    end = time.perf_counter()
    return (end - first) / TOKENS, end - start


def _choose(logits: Tensor, sequence: Generation) -> None:
    (chosen,) = choose(logits, [sequence])
    assert isinstance(chosen, ChosenToken)
    sequence.output.append(chosen.token_id)


def clocked(work: Callable[[], object]) -> float:
    """Return how many seconds `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
