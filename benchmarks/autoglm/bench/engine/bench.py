"""What `autoglm bench engine` measures: the embedded engine beside others, on the same weights and prompts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.util import find_spec

import torch

from autoglm.bench.engine.checks import Crowd, Equal, crowd, equality
from autoglm.bench.engine.model_under_test import GLM_4_9B, GLM_127M, Setting, Subject
from autoglm.bench.engine.speed import Row, beside_vllm, second_step, speeds, whole_mesh
from autoglm.common.bundle import Bundle

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Job = tuple[str, Callable[[], None]]


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that was measured."""

    rows: list[Row] = field(default_factory=list)
    equal: list[Equal] = field(default_factory=list)
    crowds: list[Crowd] = field(default_factory=list)


def run(setting: Setting, bundle: Bundle, tell: Callable[[str, int, int], None]) -> Found:
    """Measure a bundle's decoder and, unless it has to be quick, larger models. `tell` hears what is done next, how
    many such things are done, and how many there are."""
    torch.set_num_threads(setting.threads)
    found = Found()
    jobs = list(_jobs(setting, bundle, found))
    for number, (label, do) in enumerate(jobs):
        tell(label, number, len(jobs))
        do()
    return found


def _jobs(setting: Setting, bundle: Bundle, found: Found) -> Iterator[Job]:
    """Yield what there is to do. Equality is of float32, where no rounding decides between words that are as likely."""
    makers: dict[str, Callable[[torch.dtype, str], Subject]] = {bundle.name: partial(Subject.of, bundle)}
    if not setting.quick:
        makers["GLM of 127 M"] = partial(Subject.random, GLM_127M)

    @lru_cache(maxsize=1)
    def subject(name: str, dtype: str) -> Subject:
        return makers[name](DTYPES[dtype], setting.device)

    def exact(name: str) -> None:
        found.equal.extend(equality(subject(name, "float32")))

    def crowded(name: str) -> None:
        found.crowds.append(crowd(subject(name, "float32")))

    def agent(name: str) -> None:
        found.rows.append(second_step(subject(name, setting.dtype), setting))

    def mesh(name: str) -> None:
        found.rows.append(whole_mesh(subject(name, setting.dtype), bundle, setting.rounds))

    def fast(name: str, n: int) -> None:
        found.rows.extend(speeds(subject(name, setting.dtype), n, setting))

    def vllm(name: str, n: int) -> None:
        found.rows.extend(beside_vllm(subject(name, setting.dtype), n, setting))

    for name in makers:
        yield f"{name}: equality", partial(exact, name)
        yield f"{name}: more than fits", partial(crowded, name)
    yield f"{bundle.name}: an agent's second step", partial(agent, bundle.name)
    if not setting.quick and (setting.device, setting.dtype) == ("cpu", "float32"):  # as a mesh computes here
        yield f"{bundle.name}: the whole mesh", partial(mesh, bundle.name)
    if not setting.quick and setting.device == "cuda":
        makers["GLM of 9 B"] = partial(Subject.random, GLM_4_9B)
    for name in makers:
        for n in setting.streams:
            yield f"{name}: speed, {n} streams", partial(fast, name, n)
        if not setting.quick and find_spec("vllm"):
            for n in (setting.streams[0], setting.streams[-1]):
                yield f"{name}: vLLM, {n} streams", partial(vllm, name, n)
