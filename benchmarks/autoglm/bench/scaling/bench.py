"""The order of `autoglm bench scaling`: each service with more and more requests in progress at a time.

The load is a closed loop: as soon as a request ends, the next one begins, so that the number in progress is the one
that Serve's autoscaling compares with `target_ongoing_requests`.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from transformers.utils.logging import disable_progress_bar

from autoglm.bench.scaling.replicas import LOADS, Ask, Took, load
from autoglm.common.modalities import ApplicationName
from autoglm.training.measured import Figure

SEED = 0
NEARLY = 0.9
LEAST_REQUESTS = 16  # of a level and round

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ScalingConfig:
    """How much is measured."""

    ongoing: Sequence[int]
    rounds: int
    threads: int

    @classmethod
    def of(cls, quick: bool, threads: int) -> "ScalingConfig":
        """Return the config of a whole run, or of a quick one."""
        return cls((1, 2, 4, 8, 16), 1, threads) if quick else cls((1, 2, 4, 8, 16, 24, 32), 3, threads)


@dataclass(frozen=True, slots=True)
class Level:
    """A service with `ongoing` requests in progress: milliseconds until their first and last result, requests per
    second, and milliseconds of CPU that each takes, which say the same however busy the machine is."""

    ongoing: int
    first_p50: Figure
    first_p95: Figure
    last_p50: Figure
    last_p95: Figure
    rate: Figure
    cpu: Figure


@dataclass(frozen=True, slots=True)
class ServiceScaling:
    """The levels of one service, with the fewest requests first."""

    service: ApplicationName
    levels: Sequence[Level]

    @property
    def enough(self) -> Level:
        """The level with the fewest requests at which each takes nearly the least CPU: batches of more gain nothing, so
        that more requests only wait."""
        least = min(level.cpu.median for level in self.levels)
        return next(level for level in self.levels if NEARLY * level.cpu.median <= least)


@dataclass(frozen=True, slots=True)
class _Round:
    """One round of a level."""

    took: Sequence[Took]
    seconds: float
    cpu_seconds: float


def run(config: ScalingConfig, tell: Tell) -> list[ServiceScaling]:
    """Measure every service; raises ToolsMissing, BundleError and InternalError."""
    disable_progress_bar()  # of every model that is loaded
    return [asyncio.run(measure(name, load(name, config.threads), config, tell)) for name in LOADS]


async def measure(name: ApplicationName, ask: Ask, config: ScalingConfig, tell: Tell) -> ServiceScaling:
    """Measure a service: every level in each round, in random order, after a round that warms up."""
    rounds: dict[int, list[_Round]] = {ongoing: [] for ongoing in config.ongoing}
    order, shuffle = list(config.ongoing), random.Random(SEED).shuffle
    total = (1 + config.rounds) * len(order)
    for number in range(1 + config.rounds):
        shuffle(order)
        for position, ongoing in enumerate(order):
            tell(f"{name}, {ongoing} in progress", number * len(order) + position, total)
            rounds[ongoing].append(await _round(ask, ongoing))
    tell(name, total, total)
    return ServiceScaling(name, [_level(ongoing, found[1:]) for ongoing, found in rounds.items()])


async def _round(ask: Ask, ongoing: int) -> _Round:
    left = iter(range(max(LEAST_REQUESTS, 2 * ongoing)))
    took, started, used = list[Took](), time.monotonic(), time.process_time()

    async def user() -> None:
        for _ in left:
            took.append(await ask())

    async with asyncio.TaskGroup() as group:
        for _ in range(ongoing):
            group.create_task(user())
    return _Round(took, time.monotonic() - started, time.process_time() - used)


def _level(ongoing: int, rounds: Sequence[_Round]) -> Level:
    first = [[1000 * each.first for each in found.took] for found in rounds]
    last = [[1000 * each.last for each in found.took] for found in rounds]
    return Level(
        ongoing,
        first_p50=Figure.of([median(values) for values in first]),
        first_p95=Figure.of([_p95(values) for values in first]),
        last_p50=Figure.of([median(values) for values in last]),
        last_p95=Figure.of([_p95(values) for values in last]),
        rate=Figure.of([len(found.took) / found.seconds for found in rounds]),
        cpu=Figure.of([1000 * found.cpu_seconds / len(found.took) for found in rounds]),
    )


def _p95(values: Sequence[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1]
