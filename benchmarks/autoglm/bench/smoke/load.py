"""A closed-loop load generator: so many users, each asking again as soon as it has its answer."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from autoglm.bench.smoke.workloads import Messages
from autoglm.cli.api import Api

MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer as its client saw it, in milliseconds, and where the server says that the time went.

    `first` runs from sending to the first token; `gap` is the mean time between tokens after it.
    """

    first: float
    gap: float
    total: float
    prompt_tokens: int
    tokens: int
    stages: Mapping[str, float]
    cache: Sequence[str]


@dataclass(frozen=True, slots=True)
class LoadRun:
    """The answers to one round of requests, and the seconds that all of them took together."""

    samples: Sequence[Sample]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all users together."""
        return sum(sample.tokens for sample in self.samples) / self.seconds

    @property
    def cache(self) -> Counter[str]:
        """How many media parts came from where."""
        return Counter(outcome for sample in self.samples for outcome in sample.cache)


def run(
    api: Api,
    model: str,
    requests: Sequence[Messages],
    concurrency: int,
    advance: Callable[[], None],
    fields: Mapping[str, Any] = {},
) -> LoadRun:
    """Send `requests` from `concurrency` users, with further `fields`; raises ApiError when one of them fails."""

    def ask(messages: Messages) -> Sample:
        sample = measure(api, model, messages, fields)
        advance()
        return sample

    started = time.perf_counter()
    with ThreadPoolExecutor(concurrency, thread_name_prefix="user") as users:
        try:
            samples = list(users.map(ask, requests))
        except BaseException:
            users.shutdown(wait=False, cancel_futures=True)
            raise
    return LoadRun(samples, time.perf_counter() - started)


def measure(api: Api, model: str, messages: Messages, fields: Mapping[str, Any]) -> Sample:
    """Ask once and time the answer; raises ApiError."""
    sent = {"model": model, "temperature": 0, "max_tokens": MAX_TOKENS, "enable_thinking": True, **fields}
    started = time.perf_counter()
    first = last = 0.0
    usage: Mapping[str, int] = {}
    telemetry: Mapping[str, Any] = {}
    for delta in api.stream(messages, **sent):
        if delta.text or delta.reasoning:
            last = time.perf_counter()
            first = first or last
        usage, telemetry = delta.usage or usage, delta.telemetry or telemetry
    ended = time.perf_counter()
    tokens = usage["completion_tokens"]
    stages, cache = _stages(telemetry["stages"])
    return Sample(
        first=((first or ended) - started) * 1000,
        gap=(last - first) * 1000 / max(1, tokens - 1),
        total=(ended - started) * 1000,
        prompt_tokens=usage["prompt_tokens"],
        tokens=tokens,
        stages=stages,
        cache=cache,
    )


def _stages(reported: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Return the stages in milliseconds, the slowest part's encoding among them, and each part's cache outcome."""
    times = {name: float(reported[name]) for name in ("fetch", "queue", "prefill", "decode")}
    encode = max((part["encode"] for part in reported["media"]), default=0.0)
    return times | {"encode": float(encode)}, [part["cache"] for part in reported["media"]]
