"""What `autoglm bench engine` measures: the embedded engine and others, on the same weights and prompts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.util import find_spec

import torch

from autoglm.bench.engine.checks import CachePressure, Equal, cache_pressure, equality
from autoglm.bench.engine.model_under_test import GLM_4_9B, GLM_127M, EngineBenchConfig, ModelUnderTest
from autoglm.bench.engine.speed import EngineComparison, against_vllm, second_step, speeds, whole_mesh
from autoglm.common.bundle import Bundle

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Job = tuple[str, Callable[[], None]]


@dataclass(frozen=True, slots=True)
class EngineResults:
    """Everything that was measured."""

    rows: list[EngineComparison] = field(default_factory=list)
    equal: list[Equal] = field(default_factory=list)
    cache_pressure: list[CachePressure] = field(default_factory=list)


def run(config: EngineBenchConfig, bundle: Bundle, tell: Callable[[str, int, int], None]) -> EngineResults:
    """Measure a bundle's decoder and, unless it has to be quick, larger models. `tell` hears what is done next, how
    many such things are done, and how many there are."""
    torch.set_num_threads(config.threads)
    found = EngineResults()
    jobs = list(_jobs(config, bundle, found))
    for number, (label, do) in enumerate(jobs):
        tell(label, number, len(jobs))
        do()
    return found


def _jobs(config: EngineBenchConfig, bundle: Bundle, found: EngineResults) -> Iterator[Job]:
    """Yield what there is to do. Equality is of float32, where no rounding decides between words that are as likely."""
    makers: dict[str, Callable[[torch.dtype, str], ModelUnderTest]] = {bundle.name: partial(ModelUnderTest.of, bundle)}
    if not config.quick:
        makers["GLM of 127 M"] = partial(ModelUnderTest.random, GLM_127M)

    @lru_cache(maxsize=1)
    def load(name: str, dtype: str) -> ModelUnderTest:
        return makers[name](DTYPES[dtype], config.device)

    def exact(name: str) -> None:
        found.equal.extend(equality(load(name, "float32")))

    def pressure(name: str) -> None:
        found.cache_pressure.append(cache_pressure(load(name, "float32")))

    def agent(name: str) -> None:
        found.rows.append(second_step(load(name, config.dtype), config))

    def mesh(name: str) -> None:
        found.rows.append(whole_mesh(load(name, config.dtype), bundle, config.rounds))

    def fast(name: str, n: int) -> None:
        found.rows.extend(speeds(load(name, config.dtype), n, config))

    def vllm(name: str, n: int) -> None:
        found.rows.extend(against_vllm(load(name, config.dtype), n, config))

    for name in makers:
        yield f"{name}: equality", partial(exact, name)
        yield f"{name}: more than fits", partial(pressure, name)
    yield f"{bundle.name}: an agent's second step", partial(agent, bundle.name)
    if not config.quick and (config.device, config.dtype) == ("cpu", "float32"):  # as a mesh computes here
        yield f"{bundle.name}: the whole mesh", partial(mesh, bundle.name)
    if not config.quick and config.device == "cuda":
        makers["GLM of 9 B"] = partial(ModelUnderTest.random, GLM_4_9B)
    for name in makers:
        for n in config.streams:
            yield f"{name}: speed, {n} streams", partial(fast, name, n)
        if not config.quick and find_spec("vllm"):
            for n in (config.streams[0], config.streams[-1]):
                yield f"{name}: vLLM, {n} streams", partial(vllm, name, n)
