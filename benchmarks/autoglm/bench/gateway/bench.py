"""What `autoglm bench gateway` measures: time added to the stub's own, chunks a second, memory of open streams."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

import uvloop

from autoglm.bench.gateway.generator import LoadClient, ResponseTimes, arrivals, burst, open_streams
from autoglm.bench.gateway.stub import Work
from autoglm.bench.gateway.targets import SERVERS, Target, running_targets

SEED = 0
PERCENTILES = (50, 99)
TICK = 0.01  # seconds: CPU time is counted in these
TIMES: Mapping[str, tuple[bool, Callable[[ResponseTimes], float]]] = {
    "unary answer": (False, lambda answer: answer.end),
    "first token of a stream": (True, lambda answer: answer.first),
    "whole stream": (True, lambda answer: answer.end),
}
Job = tuple[str, Callable[[], Awaitable[None]]]


@dataclass(frozen=True, slots=True)
class GatewayBenchConfig:
    """How it is measured: in each round `requests` of `work`, unary and then streamed, that come at `rate` a second;
    then bursts, words of a stream by the number of streams. Before the rounds, `held` streams are opened `steps` times.
    """

    rounds: int
    rate: float
    requests: int
    work: Work
    bursts: Mapping[int, int]
    steps: int
    held: int

    @classmethod
    def of(cls, quick: bool) -> "GatewayBenchConfig":
        """Return the config of a command line."""
        work = Work(words=16, gap=0.005)
        if quick:
            return cls(2, 20.0, 20, work, {1: 500, 64: 8}, 2, 32)
        return cls(5, 20.0, 100, work, {1: 2000, 64: 64, 512: 32}, 5, 100)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class GatewayResults:
    """Everything that was measured, a value a round."""

    times: dict[tuple[str, str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Milliseconds, by target, kind of time and percentile."""
    rates: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Chunks a second, by target and streams."""
    cpu_rates: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Chunks a second of CPU time, by target and streams."""
    memory: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """KiB a stream, by target."""

    def added(self, target: str, kind: str, percentile: int) -> list[float]:
        """Return the milliseconds that a gateway adds to what the stub takes over the gateway's own protocol."""
        through, direct = (self.times[name, kind, percentile] for name in (target, SERVERS[target]))
        return [a - b for a, b in zip(through, direct, strict=True)]


def run(config: GatewayBenchConfig, peers: Mapping[str, Path], tell: Callable[[str, int, int], None]) -> GatewayResults:
    """Measure our gateway and `peers`, each by its program. `tell` hears what is done next, how many such things are
    done, and how many there are. Raises StartError, Incomplete."""
    tell("starting", 0, 1)
    with running_targets(peers) as targets, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(targets, config, tell))


async def _measure(
    targets: Mapping[str, Target], config: GatewayBenchConfig, tell: Callable[[str, int, int], None]
) -> GatewayResults:
    results, clients = GatewayResults(), {name: target.connect() for name, target in targets.items()}
    jobs = list(_jobs(targets, clients, config, results))
    for number, (label, do) in enumerate(jobs):
        tell(label, number, len(jobs))
        await do()
    for client in clients.values():
        await client.close()
    return results


def _jobs(
    targets: Mapping[str, Target],
    clients: Mapping[str, LoadClient],
    config: GatewayBenchConfig,
    results: GatewayResults,
) -> Iterator[Job]:
    """Yield what there is to do; in each round the targets come in an order of its own."""
    for name, client in clients.items():
        yield f"{name}: warm up", partial(_warm_up, client, config)
    for name in SERVERS.keys() & targets.keys():
        yield f"{name}: open streams", partial(_memory, targets[name], clients[name], config, results.memory[name])
    for number in range(config.rounds):
        order = list(clients)
        random.Random(number).shuffle(order)
        for name in order:
            yield f"{name}: arrivals", partial(_times, name, clients[name], config, number, results)
        for streams in config.bursts:
            for name in order:
                yield (
                    f"{name}: {streams} streams",
                    partial(_burst, name, targets[name], clients[name], streams, config, results),
                )


async def _warm_up(client: LoadClient, config: GatewayBenchConfig) -> None:
    for stream in (False, True):
        await arrivals(client, config.work, stream, config.rate, config.requests // 5, SEED)
    await burst(client, Work(8), max(config.bursts) // 4)


async def _memory(target: Target, client: LoadClient, config: GatewayBenchConfig, kept: list[float]) -> None:
    held: list[asyncio.Task[ResponseTimes]] = []
    for _ in range(config.steps):
        before = target.resident_bytes
        held += await open_streams(client, config.held)
        kept.append((target.resident_bytes - before) / config.held / 1024)
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def _times(
    name: str, client: LoadClient, config: GatewayBenchConfig, number: int, results: GatewayResults
) -> None:
    for stream in (False, True):
        answers = await arrivals(client, config.work, stream, config.rate, config.requests, number)
        for kind, (of_stream, value) in TIMES.items():
            if of_stream == stream:
                _note(results, name, kind, [1000 * value(answer) for answer in answers])


def _note(results: GatewayResults, name: str, kind: str, values: Sequence[float]) -> None:
    cuts = quantiles(values, n=100)
    for percentile in PERCENTILES:
        results.times[name, kind, percentile].append(cuts[percentile - 1])


async def _burst(
    name: str, target: Target, client: LoadClient, streams: int, config: GatewayBenchConfig, results: GatewayResults
) -> None:
    chunks, before = streams * config.bursts[streams], target.cpu_seconds
    results.rates[name, streams].append(chunks / await burst(client, Work(config.bursts[streams]), streams))
    if name in SERVERS:
        results.cpu_rates[name, streams].append(chunks / max(TICK, target.cpu_seconds - before))
