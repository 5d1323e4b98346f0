"""What only a mesh shows: the time of the gateway and of the calls, from requests that meet no others."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from autoglm.bench.plan.costs import GatewayCost, StageCosts
from autoglm.bench.smoke.workloads import WORKLOADS, Messages, draw
from autoglm.bench.stages.bench import MeasuredStages
from autoglm.bench.stages.media import sizes_of
from autoglm.cli.api import Api

ALONE = 25  # requests of each workload, the first of which do not count
WARM_UP = 5
SEED = 1000
MAX_TOKENS = 64
WORKING = 60  # requests of each length by which the gateway's CPU time is measured; its clock ticks every 10 ms

Tell = Callable[[str, int, int], object]


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """What a client saw of one answer, in seconds: until the first token, and between those after it."""

    images: int
    audio_seconds: float
    prompt_tokens: int
    tokens: int
    first: float
    gaps: Sequence[float]


Answers = Mapping[str, Sequence[TimedAnswer]]  # by workload


def ask(
    api: Api, model: str, messages: Messages, due: float | None = None, max_tokens: int = MAX_TOKENS
) -> TimedAnswer:
    """Ask once; the time to the first token runs from `due` (of time.perf_counter), or from now. Raises ApiError."""
    started = time.perf_counter() if due is None else due
    stamps: list[float] = []
    usage: Mapping[str, int] = {}
    for delta in api.stream(messages, model=model, temperature=0, max_tokens=max_tokens, enable_thinking=True):
        if delta.text or delta.reasoning:
            stamps.append(time.perf_counter())
        usage = delta.usage or usage
    images, seconds = sizes_of(messages)
    first = (stamps[0] if stamps else time.perf_counter()) - started
    gaps = [later - earlier for earlier, later in pairwise(stamps)]
    return TimedAnswer(images, seconds, usage["prompt_tokens"], usage["completion_tokens"], first, gaps)


def ask_alone(api: Api, model: str, tell: Tell) -> dict[str, list[TimedAnswer]]:
    """Return the answers to requests of each workload, one after the other; raises ApiError, ToolsMissing."""
    answers: dict[str, list[TimedAnswer]] = {}
    for number, name in enumerate(WORKLOADS):
        requests = draw(name, ALONE, SEED + number, lambda: None)
        answers[name] = []
        for index, messages in enumerate(requests):
            tell("One request at a time", number * ALONE + index, ALONE * len(WORKLOADS))
            answers[name].append(ask(api, model, messages))
        del answers[name][:WARM_UP]
    return answers


@dataclass(frozen=True, slots=True)
class GatewayWork:
    """Seconds of CPU that a gateway process takes for a request, and for each of its tokens."""

    request: float
    token: float


def measure_gateway(api: Api, model: str, cpu_seconds: Callable[[], float], tell: Tell) -> GatewayWork:
    """Return what texts take of a gateway whose CPU time so far is `cpu_seconds`: short answers and long ones, one
    after the other; raises ApiError, ToolsMissing."""
    requests = draw("text", WORKING, SEED - 1, lambda: None)

    def worked(max_tokens: int, before: int) -> tuple[int, float]:
        started, tokens = cpu_seconds(), 0
        for number, messages in enumerate(requests):
            tell("The gateway's CPU time", before + number, 2 * WORKING)
            tokens += ask(api, model, messages, max_tokens=max_tokens).tokens
        return tokens, cpu_seconds() - started

    (few, short), (many, long) = worked(1, 0), worked(MAX_TOKENS, WORKING)
    token = max(0.0, (long - short) / max(1, many - few))  # a model may never write more than one token
    return GatewayWork(max(0.0, (short - few * token) / WORKING), token)


def with_mesh(measured: MeasuredStages, answers: Answers, work: GatewayWork) -> MeasuredStages:
    """Return costs with what they leave unexplained of the answers to single requests, and the gateway's own `work`."""
    costs = measured.costs
    gateway = GatewayCost(
        request_cpu_s=work.request,
        token_cpu_s=work.token,
        request_s=_left(answers["text"], lambda answer: _prefill(costs, answer)),
        token_s=_between(costs, answers["text"]),
        memory_bytes=costs.gateway.memory_bytes,
    )
    vision, speech = costs.vision, costs.speech

    def of_picture(answer: TimedAnswer) -> float:
        return gateway.request_s + _prefill(costs, answer) + vision.alone(1)

    def of_recording(answer: TimedAnswer) -> float:
        return gateway.request_s + _prefill(costs, answer) + speech.alone(answer.audio_seconds)

    calls = {
        "vision": vision.model_copy(update={"hop_s": _left(answers["screen"], of_picture)}),
        "speech": speech.model_copy(update={"hop_s": _left(answers["voice"], of_recording)}),
    }
    return replace(measured, costs=costs.model_copy(update={"gateway": gateway, **calls}))


def _between(costs: StageCosts, answers: Sequence[TimedAnswer]) -> float:
    """Return what is left of the time between two tokens."""
    return max(0.0, median(median(answer.gaps) - _decode(costs, answer) for answer in answers if answer.gaps))


def _left(answers: Sequence[TimedAnswer], explained: Callable[[TimedAnswer], float]) -> float:
    return max(0.0, median(answer.first - explained(answer) for answer in answers))


def _prefill(costs: StageCosts, answer: TimedAnswer) -> float:
    return costs.decoder.prefill.seconds(answer.prompt_tokens, answer.prompt_tokens**2 / 2)


def _decode(costs: StageCosts, answer: TimedAnswer) -> float:
    return costs.decoder.decode.seconds(1, answer.prompt_tokens + answer.tokens / 2)
