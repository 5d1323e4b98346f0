"""Simulated against measured: the same requests, at several rates, to a mesh and in a simulation of it."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import fmean, pstdev

from autoglm.bench.plan.costs import StageCosts
from autoglm.bench.plan.placement import Placement
from autoglm.bench.plan.replications import Replications
from autoglm.bench.plan.simulation import SimulationConfig
from autoglm.bench.plan.sizing import PERCENTILES, ExpectedLatency, percentiles
from autoglm.bench.plan.workload import RequestClass, Slo, Workload
from autoglm.bench.smoke.workloads import Messages, draw
from autoglm.bench.stages.mesh import Answers, TimedAnswer, ask
from autoglm.cli.api import Api

MIX: Mapping[str, float] = {"text": 0.5, "screen": 0.3, "voice": 0.2}
RATES = (1.0, 2.0, 4.0, 6.0)  # requests a second
SEED = 2000
SIMULATED = 4000
USERS = 64  # requests in progress at most; a client that falls behind would measure itself

Tell = Callable[[str, int, int], object]


@dataclass(frozen=True, slots=True)
class RateComparison:
    """What clients saw and what was expected at one rate; `late_s` is the most that the client was behind."""

    rate: float
    requests: int
    measured: ExpectedLatency
    simulated: ExpectedLatency
    late_s: float


@dataclass(frozen=True, slots=True)
class RateRun:
    """The answers at one rate."""

    rate: float
    answers: Sequence[TimedAnswer]
    late_s: float

    @property
    def latency(self) -> ExpectedLatency:
        """Return the percentiles of what clients saw."""
        first = percentiles((each.first for each in self.answers), PERCENTILES)
        between = percentiles((gap for each in self.answers for gap in each.gaps), PERCENTILES)
        return ExpectedLatency(*(round(1000 * value, 2) for value in (*first, *between)))


def measure_rates(api: Api, model: str, rates: Sequence[float], seconds: float, tell: Tell) -> Iterator[RateRun]:
    """Ask at each of `rates` for about so many `seconds`; raises ApiError, ToolsMissing."""
    for number, rate in enumerate(rates):
        count = max(10, round(rate * seconds))
        draws = random.Random(SEED + number)
        names = draws.choices(list(MIX), list(MIX.values()), k=count)
        requests = _drawn(names, SEED + 10 * number)
        label = f"{rate:g} requests/s"
        answers, late = _ask(api, model, requests, rate, draws, partial(_tell_of, tell, label, count))
        yield RateRun(rate, answers, late)


def _tell_of(tell: Tell, label: str, total: int, done: int) -> None:
    tell(label, done, total)


def _drawn(names: Sequence[str], seed: int) -> list[Messages]:
    supplies = {name: iter(draw(name, names.count(name), seed, lambda: None)) for name in set(names)}
    return [next(supplies[name]) for name in names]


def _ask(
    api: Api, model: str, requests: Sequence[Messages], rate: float, draws: random.Random, done: Callable[[int], object]
) -> tuple[list[TimedAnswer], float]:
    """Ask at moments of a Poisson process, whether or not earlier answers are there."""
    due, late, answers = time.perf_counter(), 0.0, list[Future[TimedAnswer]]()
    with ThreadPoolExecutor(USERS, thread_name_prefix="user") as users:
        try:
            for number, messages in enumerate(requests):
                due += draws.expovariate(rate)
                time.sleep(max(0.0, due - time.perf_counter()))
                late = max(late, time.perf_counter() - due)
                answers.append(users.submit(ask, api, model, messages, due))
                done(number + 1)
            return [answer.result() for answer in answers], late
        except BaseException:
            users.shutdown(wait=False, cancel_futures=True)
            raise


def workload_of(answers: Answers, costs: StageCosts, rate: float) -> Workload:
    """Return the workload of `MIX` with the sizes that requests of each kind had."""
    classes = tuple(_class(name, share, answers[name], costs) for name, share in MIX.items())
    return Workload(request_rate=rate, classes=classes, slo=Slo(ttft_p99_ms=1, itl_p99_ms=1))


def _class(name: str, share: float, answers: Sequence[TimedAnswer], costs: StageCosts) -> RequestClass:
    tokens, seconds = [each.tokens for each in answers], [each.audio_seconds for each in answers]
    images = answers[0].images
    media = [images * costs.vision.tokens_per_unit + each * costs.speech.tokens_per_unit for each in seconds]
    prompts = [each.prompt_tokens - tokens_of for each, tokens_of in zip(answers, media, strict=True)]
    return RequestClass(
        name=name,
        share=share,
        prompt_tokens=max(1, round(fmean(prompts))),
        prompt_tokens_stdev=pstdev(prompts),
        output_tokens=round(fmean(tokens)),
        output_tokens_stdev=pstdev(tokens),
        images=images,
        audio_seconds=fmean(seconds),
        audio_seconds_stdev=pstdev(seconds),
    )


def compared(run: RateRun, alone: Answers, costs: StageCosts, simulator: Replications, tell: Tell) -> RateComparison:
    """Simulate what was measured, one mesh on one machine, and return both."""
    workload, placement = workload_of(alone, costs, run.rate), Placement((("decoder", "vision", "speech", "gateway"),))
    label = f"simulating {run.rate:g} requests/s"
    expected = simulator.simulate(
        workload, costs, placement, SimulationConfig(SIMULATED, 0), lambda done, total: tell(label, done, total)
    )
    return RateComparison(run.rate, len(run.answers), run.latency, ExpectedLatency.of(expected), run.late_s)
