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

from autoglm.bench.gateway.generator import Answer, Asker, arrivals, crowd, open_streams
from autoglm.bench.gateway.stub import Work
from autoglm.bench.gateway.targets import SERVERS, Side, running_sides

SEED = 0
PERCENTILES = (50, 99)
TICK = 0.01  # seconds: CPU time is counted in these
TIMES: Mapping[str, tuple[bool, Callable[[Answer], float]]] = {
    "unary answer": (False, lambda answer: answer.end),
    "first token of a stream": (True, lambda answer: answer.first),
    "whole stream": (True, lambda answer: answer.end),
}
Job = tuple[str, Callable[[], Awaitable[None]]]


@dataclass(frozen=True, slots=True)
class Setting:
    """How it is measured: in each round `requests` of `work`, unary and then streamed, that come at `rate` a second;
    then crowds, words of a stream by the number of streams. Before the rounds, `held` streams are opened `steps` times.
    """

    rounds: int
    rate: float
    requests: int
    work: Work
    crowds: Mapping[int, int]
    steps: int
    held: int

    @classmethod
    def of(cls, quick: bool) -> "Setting":
        """Return the setting of a command line."""
        work = Work(words=16, gap=0.005)
        if quick:
            return cls(2, 20.0, 20, work, {1: 500, 64: 8}, 2, 32)
        return cls(5, 20.0, 100, work, {1: 2000, 64: 64, 512: 32}, 5, 100)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that was measured, a value a round."""

    times: dict[tuple[str, str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Milliseconds, by side, kind of time and percentile."""
    rates: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Chunks a second, by side and streams."""
    cpu_rates: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Chunks a second of CPU time, by side and streams."""
    memory: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """KiB a stream, by side."""

    def added(self, side: str, kind: str, percentile: int) -> list[float]:
        """Return the milliseconds that a gateway adds to what the stub takes over the gateway's own protocol."""
        through, direct = (self.times[name, kind, percentile] for name in (side, SERVERS[side]))
        return [a - b for a, b in zip(through, direct, strict=True)]


def run(setting: Setting, peers: Mapping[str, Path], tell: Callable[[str, int, int], None]) -> Found:
    """Measure our gateway and `peers`, each by its program. `tell` hears what is done next, how many such things are
    done, and how many there are. Raises StartError, Incomplete."""
    tell("starting", 0, 1)
    with running_sides(peers) as sides, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(sides, setting, tell))


async def _measure(sides: Mapping[str, Side], setting: Setting, tell: Callable[[str, int, int], None]) -> Found:
    found, askers = Found(), {name: side.connect() for name, side in sides.items()}
    jobs = list(_jobs(sides, askers, setting, found))
    for number, (label, do) in enumerate(jobs):
        tell(label, number, len(jobs))
        await do()
    for asker in askers.values():
        await asker.close()
    return found


def _jobs(sides: Mapping[str, Side], askers: Mapping[str, Asker], setting: Setting, found: Found) -> Iterator[Job]:
    """Yield what there is to do; in each round the sides come in an order of its own."""
    for name, asker in askers.items():
        yield f"{name}: warm up", partial(_warm_up, asker, setting)
    for name in SERVERS.keys() & sides.keys():
        yield f"{name}: open streams", partial(_memory, sides[name], askers[name], setting, found.memory[name])
    for number in range(setting.rounds):
        order = list(askers)
        random.Random(number).shuffle(order)
        for name in order:
            yield f"{name}: arrivals", partial(_times, name, askers[name], setting, number, found)
        for streams in setting.crowds:
            for name in order:
                yield (
                    f"{name}: {streams} streams",
                    partial(_crowd, name, sides[name], askers[name], streams, setting, found),
                )


async def _warm_up(asker: Asker, setting: Setting) -> None:
    for stream in (False, True):
        await arrivals(asker, setting.work, stream, setting.rate, setting.requests // 5, SEED)
    await crowd(asker, Work(8), max(setting.crowds) // 4)


async def _memory(side: Side, asker: Asker, setting: Setting, kept: list[float]) -> None:
    held: list[asyncio.Task[Answer]] = []
    for _ in range(setting.steps):
        before = side.resident_bytes
        held += await open_streams(asker, setting.held)
        kept.append((side.resident_bytes - before) / setting.held / 1024)
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def _times(name: str, asker: Asker, setting: Setting, number: int, found: Found) -> None:
    for stream in (False, True):
        answers = await arrivals(asker, setting.work, stream, setting.rate, setting.requests, number)
        for kind, (of_stream, value) in TIMES.items():
            if of_stream == stream:
                _note(found, name, kind, [1000 * value(answer) for answer in answers])


def _note(found: Found, name: str, kind: str, values: Sequence[float]) -> None:
    cuts = quantiles(values, n=100)
    for percentile in PERCENTILES:
        found.times[name, kind, percentile].append(cuts[percentile - 1])


async def _crowd(name: str, side: Side, asker: Asker, streams: int, setting: Setting, found: Found) -> None:
    chunks, before = streams * setting.crowds[streams], side.cpu_seconds
    found.rates[name, streams].append(chunks / await crowd(asker, Work(setting.crowds[streams]), streams))
    if name in SERVERS:
        found.cpu_rates[name, streams].append(chunks / max(TICK, side.cpu_seconds - before))
