"""Answers that must equal those of transformers whatever else runs, and what more requests than the cache holds do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from autoglm.bench.engine.model_under_test import CONTEXT, IN, OUT, WIDE, ModelUnderTest
from autoglm.bench.engine.peers import Ours, plain
from autoglm.decoder.engine.cache import num_blocks
from autoglm.decoder.engine.request import Request, SamplingConfig
from autoglm.fusion.gcma.fuse import fuse
from autoglm.fusion.prompt import Media, Prompt, PromptMessage


@dataclass(frozen=True, slots=True)
class Equal:
    """How many answers of a kind were asked for, and how many are token for token what transformers says."""

    model: str
    check: str
    asked: int
    equal: int


def equality(model: ModelUnderTest) -> Iterator[Equal]:
    """Yield, for every way of computing, how many greedy answers are those of transformers' generate."""
    prompts, lengths = _mixed(model)
    wanted = [_theirs(model, prompt, n) for prompt, n in zip(prompts, lengths, strict=True)]
    small = max(num_blocks(len(p.token_ids) + n) for p, n in zip(prompts, lengths, strict=True)) + 2
    ways = {
        "mixed batch, no prefix cache": WIDE,
        "prefix cache": replace(WIDE, enable_prefix_caching=True),
        "chunks of 16 tokens": replace(WIDE, max_num_batched_tokens=16),
        "chunks of 1024 tokens": replace(WIDE, max_num_batched_tokens=1024),
        "after pre-emption": replace(WIDE, num_blocks=small),
    }
    for name, limits in ways.items():
        engine = Ours(model.glm, model.fusion, limits)
        rounds = 2 if limits.enable_prefix_caching else 1
        said = [answer for _ in range(rounds) for answer in engine.ask(prompts, lengths).tokens]
        engine.close()
        yield _equal(model, name, said, wanted * rounds)
    yield _equal(model, "with aborts", _with_aborts(model, prompts, lengths), wanted)


def _equal(model: ModelUnderTest, check: str, said: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> Equal:
    same = sum(list(mine) == list(other) for mine, other in zip(said, wanted, strict=True))
    return Equal(model.name, check, len(wanted), same)


def _mixed(model: ModelUnderTest) -> tuple[list[Prompt], list[int]]:
    """Return prompts of many lengths, with media where the model has words, and how long each answer is."""
    if model.composer is None:
        prompts = [plain(ids[: 16 + 9 * i]) for i, ids in enumerate(model.ids(12, seed=5))]
    else:
        torch.manual_seed(1)
        screen, voice = Media("image", torch.randn(49, 320)), Media("audio", torch.randn(25, 1536))
        parts: list[tuple[str | Media, ...]] = [
            ("What is 3 + 4?",), (screen, "Where is Camera?"), (voice,), (screen, voice, "打开相机"), ("你好" * 70,),
            (screen, "What colour is Camera? " * 12),
        ]  # fmt: skip
        prompts = [model.composer.compose([PromptMessage("user", p)], think) for p in parts for think in (True, None)]
    return prompts, [24 + 7 * i for i in range(len(prompts))]


@torch.inference_mode()
def _theirs(model: ModelUnderTest, prompt: Prompt, n: int) -> list[int]:
    fused = fuse(model.fusion, model.source.model.embed_tokens, prompt).embeddings[None]
    mask = torch.ones(fused.shape[:2], dtype=torch.long, device=fused.device)
    said = model.source.generate(
        inputs_embeds=fused, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    return [int(token) for token in said[0]]


def _with_aborts(model: ModelUnderTest, prompts: Sequence[Prompt], lengths: Sequence[int]) -> list[list[int]]:
    """Return the answers, each given while others run that are given up before they end."""
    engine, said = Ours(model.glm, model.fusion, WIDE), list[list[int]]()
    for prompt, length in zip(prompts, lengths, strict=True):
        victims = [Request(other, SamplingConfig(temperature=0), CONTEXT) for other in prompts[:3]]
        for victim in victims:
            engine.engine.submit(victim, lambda _: None)
        doomed = iter(victims)

        def leave(doomed: Iterator[Request] = doomed) -> None:
            if victim := next(doomed, None):
                engine.engine.abort(victim.id)

        said += [list(answer) for answer in engine.ask([prompt], [length], between=leave).tokens]
    engine.close()
    return said


@dataclass(frozen=True, slots=True)
class CachePressure:
    """More requests than the cache holds: how many ended, how many of them as with room for all, how often one was put
    back, and by how many MiB the process (on a GPU: what torch has taken there) grew from the first quarter of the
    answers on, and the cache's size."""

    model: str
    asked: int
    finished: int
    equal: int
    preemptions: int
    grown_mib: float
    cache_mib: float


def cache_pressure(model: ModelUnderTest) -> CachePressure:
    """Ask four times as many prompts at once as fit in the cache."""
    fit, each = 8, num_blocks(IN + OUT)
    prompts, lengths = (
        [plain(ids) for ids in model.ids(4 * fit, seed=9)],
        [2 * OUT] * 4 * fit,
    )  # they grow while they run
    roomy = Ours(model.glm, model.fusion, WIDE)
    wanted = roomy.ask(prompts, lengths)
    roomy.close()
    tight = Ours(model.glm, model.fusion, replace(WIDE, num_blocks=fit * each, enable_prefix_caching=True))
    tight.ask(prompts[:fit], lengths[:fit])
    before = taken(model)
    said = tight.ask(prompts, lengths)
    grown, stats = taken(model) - before, tight.engine.stats()
    tight.close()
    equal = sum(list(mine) == list(other) for mine, other in zip(said.tokens, wanted.tokens, strict=True))
    cache = fit * each * model.glm.block_bytes
    return CachePressure(
        model.name, len(prompts), len(said.tokens), equal, stats.preemptions, round(grown / 2**20, 1),
        round(cache / 2**20, 1),
    )  # fmt: skip


def taken(model: ModelUnderTest) -> int:
    """Return the bytes that this process holds where the model computes."""
    return torch.cuda.memory_reserved() if model.source.device.type == "cuda" else resident()


def resident() -> int:
    """Return the bytes of this process's own memory."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return 1024 * int(dict(line.split(":", 1) for line in lines)["Private_Dirty"].split()[0])
