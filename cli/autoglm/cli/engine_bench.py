"""What `autoglm bench engine` measures: the embedded engine beside transformers, on the same weights and prompts."""

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers.models.glm import GlmConfig
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.cli import load, workloads
from autoglm.cli.api import Api
from autoglm.cli.engine_peers import Answers, Continuous, Generate, Ours, Peer, plain
from autoglm.cli.local import running_mesh
from autoglm.common.bundle import Bundle
from autoglm.common.measured import Figure
from autoglm.decoder.engine.cache import blocks
from autoglm.decoder.engine.embedded import Limits
from autoglm.decoder.engine.glm import Glm
from autoglm.decoder.engine.sequence import Sampling
from autoglm.decoder.engine.sequence import Sequence as Request
from autoglm.fusion.compose import Composer, Media, Message, Prompt
from autoglm.fusion.fuse import fuse
from autoglm.fusion.model import FusionConfig, FusionModel

IN, OUT = 128, 64  # tokens of a prompt and of an answer
CONTEXT, SLOTS, STEP_TOKENS = 2048, 32, 256
WIDE = Limits(SLOTS, STEP_TOKENS, SLOTS * blocks(CONTEXT), keep_prefixes=False)
SEED = 0
SYSTEM_CHARACTERS = 3000  # of a phone agent's prompt
LARGER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
          "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 16384, "pad_token_id": 0}  # fmt: skip


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Setting:
    """How it is measured. `threads` compute, on both sides."""

    quick: bool
    dtype: str
    threads: int
    rounds: int
    streams: tuple[int, ...]

    @classmethod
    def of(cls, quick: bool, dtype: str, threads: int, rounds: int) -> "Setting":
        """Return the setting of a command line; `quick` halves the streams and takes two rounds at most."""
        half = max(1, (os.cpu_count() or 1) // 2)
        return cls(quick, dtype, threads or half, min(rounds, 2) if quick else rounds, (1, 8) if quick else (1, 8, 32))

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return asdict(self) | {"prompt_tokens": IN, "answer_tokens": OUT}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is measured; `composer` is None where it has no words, only token ids."""

    name: str
    source: GlmForCausalLM
    glm: Glm
    fusion: FusionModel
    composer: Composer | None

    @classmethod
    def of(cls, bundle: Bundle, dtype: torch.dtype) -> "Subject":
        """Return a bundle's decoder and fusion."""
        source = GlmForCausalLM.from_pretrained(bundle.part("decoder"), dtype=dtype, local_files_only=True).eval()
        fusion = FusionModel.from_pretrained(bundle.part("fusion"), dtype)
        return cls(bundle.name, source, Glm(source, CONTEXT), fusion, Composer(bundle.part("decoder")))

    @classmethod
    def larger(cls, seed: int, dtype: torch.dtype) -> "Subject":
        """Return a GLM of random weights."""
        torch.manual_seed(seed)
        config = GlmConfig(**LARGER, max_position_embeddings=CONTEXT, attention_bias=True)
        source = GlmForCausalLM(config).to(dtype).eval()
        size = sum(weight.numel() for weight in source.parameters())
        fusion = FusionModel(FusionConfig(text_width=config.hidden_size)).to(dtype).eval()
        return cls(f"GLM of {size / 1e6:.0f} M, random", source, Glm(source, CONTEXT), fusion, None)

    def ids(self, n: int, seed: int) -> list[list[int]]:
        """Return `n` prompts of random tokens."""
        draw = random.Random(seed)
        return [[draw.randrange(100, self.glm.config.vocab_size - 100) for _ in range(IN)] for _ in range(n)]


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: a figure of the engine, the peer's, and their ratio, round by round. A `goal` is the least that
    the ratio should be, or with `at_most` the most."""

    model: str
    measure: str
    ours: Figure
    peer: Figure
    ratio: Figure
    goal: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the median reaches the goal."""
        return self.ratio.median <= self.goal if self.at_most else self.ratio.median >= self.goal


def row(
    model: str, measure: str, ours: Sequence[float], peer: Sequence[float], goal: float, at_most: bool = False
) -> Row:
    """Return the comparison of the rounds of both sides."""
    ratio = Figure.of([mine / other for mine, other in zip(ours, peer, strict=True)])
    return Row(model, measure, Figure.of(ours), Figure.of(peer), ratio, goal, at_most)


@dataclass(frozen=True, slots=True)
class Equal:
    """How many answers of a kind were asked for, and how many are token for token what transformers says."""

    model: str
    check: str
    asked: int
    equal: int


# --- speed -----------------------------------------------------------------------------------------


def interleaved(peers: Mapping[str, Peer], subject: Subject, n: int, rounds: int) -> dict[str, list[Answers]]:
    """Ask everyone the same `n` prompts in every round, in an order of its own, after one round that warms up."""
    found: dict[str, list[Answers]] = {name: [] for name in peers}
    for number in range(rounds + 1):
        order = list(peers)
        random.Random(number).shuffle(order)
        for name in order:
            found[name].append(peers[name].answer(subject.ids(n, seed=number), OUT))
    return {name: answers[1:] for name, answers in found.items()}


GOALS = {1: 1.0, 8: 1.3, 32: 1.5}  # of decoding beside transformers' generate, by streams


def speeds(subject: Subject, n: int, setting: Setting) -> Iterator[Row]:
    """Yield tokens a second of `n` streams beside transformers; alone, a token's time beside the memory's bandwidth;
    for the most streams also what continuous batching does."""
    last, compiled, rounds = n == max(setting.streams), not setting.quick, setting.rounds
    engine = Ours(subject.glm, subject.fusion, WIDE)
    peers: dict[str, Peer] = {"engine": engine, "generate": Generate(subject.source, compiled)}
    if last:
        peers["continuous"] = Continuous(subject.source, n, IN + OUT)
    answers = interleaved(peers, subject, n, rounds)
    engine.close()
    ours = [one.decode_rate for one in answers["engine"]]
    kind = "static cache, compiled" if compiled else "not compiled"
    label = f"decode tokens/s, {n} streams: generate, {kind}"
    yield row(subject.name, label, ours, [one.decode_rate for one in answers["generate"]], GOALS[n])
    if n == 1:
        limit = 1000 * weight_bytes(subject.glm) / read_bandwidth()
        label = "ms a token, 1 stream: bytes of the weights / measured bandwidth"
        yield row(subject.name, label, [1000 / rate for rate in ours], [limit] * rounds, 1.5, at_most=True)
    if last:
        whole, their = ([one.rate for one in answers[name]] for name in ("engine", "continuous"))
        yield row(subject.name, f"tokens/s with prompts, {n} streams: continuous batching", whole, their, 4.0)


def weight_bytes(glm: Glm) -> int:
    """Return the bytes that a token's pass reads: every weight but the embedding, of which it reads one row."""
    total = sum(int(weight.numel() * weight.itemsize) for weight in glm.parameters())
    return total - int(glm.embed.weight.numel() * glm.embed.weight.itemsize)


def read_bandwidth() -> float:
    """Return the bytes a second that torch reads from memory on its threads: the best of some sums over 512 MiB."""
    big = torch.ones(2**27)

    def seconds() -> float:
        start = perf_counter()
        big.sum()
        return perf_counter() - start

    return big.numel() * big.itemsize / min(seconds() for _ in range(5))


def second_step(subject: Subject, rounds: int) -> Row:
    """Return the time to the first token of a phone agent's second step, beside its first step's."""
    assert subject.composer is not None
    ours = Ours(subject.glm, subject.fusion, replace(WIDE, keep_prefixes=True))
    first, second = agent_steps(subject.composer, SYSTEM_CHARACTERS)
    times: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for prompt, kept in zip((first, second), times, strict=True):
            start = perf_counter()
            answers = ours.ask([prompt], [4], salt=b"%d" % number)  # nothing of the last round is known
            kept.append(1000 * (answers.stamps[0][0] - start))
    ours.close()
    label = f"ms to the first token, an agent's 2nd step: its 1st ({len(first.token_ids)} tokens)"
    return row(subject.name, label, times[1][1:], times[0][1:], 0.5, at_most=True)


def agent_steps(composer: Composer, characters: int) -> tuple[Prompt, Prompt]:
    """Return two steps of a session: one long system prompt, in each step a new screenshot, the last one dropped."""
    rules = "".join(f"{n}. Before you tap, see that the page is the one that you expect.\n" for n in range(characters))
    torch.manual_seed(0)
    screens = [Media("image", torch.randn(49, 320)) for _ in range(2)]
    system, task = Message("system", (rules[:characters],)), "Open Camera."
    step = Message("assistant", ('<answer>do(action="Tap", element=[120,340])</answer>',))
    first = composer.compose([system, Message("user", (screens[0], task))])
    second = composer.compose([system, Message("user", (task,)), step, Message("user", (screens[1], "Go on."))])
    return first, second


def whole_mesh(subject: Subject, bundle: Bundle, rounds: int) -> Row:
    """Return tokens/s of a mesh that is started for it, over HTTP, beside those of the bare engine: 32 users of text.

    Nobody's answer ends before its last token: the mesh is told to say none that ends one.
    """
    assert subject.composer is not None
    stops = subject.source.generation_config.eos_token_id
    fields = {"logit_bias": dict.fromkeys(map(str, [stops] if isinstance(stops, int) else stops or []), -100)}
    engine, rates = Ours(subject.glm, subject.fusion, WIDE), {"mesh": list[float](), "engine": list[float]()}
    os.environ["AUTOGLM_BUNDLE"] = str(bundle.root)
    with running_mesh() as address:
        api = Api(address)
        for number in range(rounds + 1):
            asked = workloads.draw("text", SLOTS, number, lambda: None)
            prompts = [subject.composer.compose(_messages(each), True) for each in asked]
            rates["engine"].append(engine.ask(prompts, [load.MAX_TOKENS] * SLOTS).rate)
            rates["mesh"].append(load.run(api, bundle.name, asked, SLOTS, lambda: None, fields).tokens_per_second)
    engine.close()
    label = f"tokens/s with prompts, {SLOTS} users of the whole mesh: the bare engine"
    return row(subject.name, label, rates["mesh"][1:], rates["engine"][1:], 0.9)


def _messages(conversation: workloads.Messages) -> list[Message]:
    return [Message(turn["role"], (turn["content"],)) for turn in conversation]


# --- what must be equal ----------------------------------------------------------------------------


def equality(subject: Subject) -> Iterator[Equal]:
    """Yield, for every way of computing, how many greedy answers are those of transformers' generate."""
    prompts, lengths = _mixed(subject)
    wanted = [_theirs(subject, prompt, n) for prompt, n in zip(prompts, lengths, strict=True)]
    small = max(blocks(len(p.token_ids) + n) for p, n in zip(prompts, lengths, strict=True)) + 2
    ways = {
        "mixed batch, no prefix cache": WIDE,
        "prefix cache": replace(WIDE, keep_prefixes=True),
        "chunks of 16 tokens": replace(WIDE, step_tokens=16),
        "chunks of 1024 tokens": replace(WIDE, step_tokens=1024),
        "after pre-emption": replace(WIDE, blocks=small),
    }
    for name, limits in ways.items():
        engine = Ours(subject.glm, subject.fusion, limits)
        rounds = 2 if limits.keep_prefixes else 1
        said = [answer for _ in range(rounds) for answer in engine.ask(prompts, lengths).tokens]
        engine.close()
        yield _equal(subject, name, said, wanted * rounds)
    yield _equal(subject, "beside aborts", _beside_aborts(subject, prompts, lengths), wanted)


def _equal(subject: Subject, check: str, said: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> Equal:
    same = sum(list(mine) == list(other) for mine, other in zip(said, wanted, strict=True))
    return Equal(subject.name, check, len(wanted), same)


def _mixed(subject: Subject) -> tuple[list[Prompt], list[int]]:
    """Return prompts of many lengths, with media where the model has words, and how long each answer is."""
    if subject.composer is None:
        prompts = [plain(ids[: 16 + 9 * i]) for i, ids in enumerate(subject.ids(12, seed=5))]
    else:
        torch.manual_seed(1)
        screen, voice = Media("image", torch.randn(49, 320)), Media("audio", torch.randn(25, 1536))
        parts: list[tuple[str | Media, ...]] = [
            ("What is 3 + 4?",), (screen, "Where is Camera?"), (voice,), (screen, voice, "打开相机"), ("你好" * 70,),
            (screen, "What colour is Camera? " * 12),
        ]  # fmt: skip
        prompts = [subject.composer.compose([Message("user", p)], think) for p in parts for think in (True, None)]
    return prompts, [24 + 7 * i for i in range(len(prompts))]


@torch.inference_mode()
def _theirs(subject: Subject, prompt: Prompt, n: int) -> list[int]:
    fused = fuse(subject.fusion, subject.source.model.embed_tokens, prompt).embeddings[None]
    mask = torch.ones(fused.shape[:2], dtype=torch.long)
    said = subject.source.generate(
        inputs_embeds=fused, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    return [int(token) for token in said[0]]


def _beside_aborts(subject: Subject, prompts: Sequence[Prompt], lengths: Sequence[int]) -> list[list[int]]:
    """Return the answers, each given while others run that are given up before they end."""
    engine, said = Ours(subject.glm, subject.fusion, WIDE), list[list[int]]()
    for prompt, length in zip(prompts, lengths, strict=True):
        victims = [Request.start(other, Sampling(temperature=0), CONTEXT, lambda _: None) for other in prompts[:3]]
        for victim in victims:
            engine.engine.submit(victim)
        doomed = iter(victims)

        def leave(doomed: Iterator[Request] = doomed) -> None:
            if victim := next(doomed, None):
                engine.engine.abort(victim)

        said += [list(answer) for answer in engine.ask([prompt], [length], between=leave).tokens]
    engine.close()
    return said


@dataclass(frozen=True, slots=True)
class Crowd:
    """More requests than the cache holds: how many ended, how many of them as with room for all, how often one was put
    back, and by how many MiB the process grew from the first quarter of the answers on, beside the cache's size."""

    model: str
    asked: int
    finished: int
    equal: int
    preemptions: int
    grown_mib: float
    cache_mib: float


def crowd(subject: Subject) -> Crowd:
    """Ask four times as many prompts at once as fit in the cache."""
    fit, each = 8, blocks(IN + OUT)
    prompts, lengths = (
        [plain(ids) for ids in subject.ids(4 * fit, seed=9)],
        [2 * OUT] * 4 * fit,
    )  # they grow while they run
    roomy = Ours(subject.glm, subject.fusion, WIDE)
    wanted = roomy.ask(prompts, lengths)
    roomy.close()
    tight = Ours(subject.glm, subject.fusion, replace(WIDE, blocks=fit * each, keep_prefixes=True))
    tight.ask(prompts[:fit], lengths[:fit])
    before = resident()
    said = tight.ask(prompts, lengths)
    grown, stats = resident() - before, tight.engine.stats()
    tight.close()
    equal = sum(list(mine) == list(other) for mine, other in zip(said.tokens, wanted.tokens, strict=True))
    cache = fit * each * subject.glm.block_bytes
    return Crowd(
        subject.name, len(prompts), len(said.tokens), equal, stats.preemptions, round(grown / 2**20, 1),
        round(cache / 2**20, 1),
    )  # fmt: skip


def resident() -> int:
    """Return the bytes of this process's own memory."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return 1024 * int(dict(line.split(":", 1) for line in lines)["Private_Dirty"].split()[0])


# --- all of it -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that was measured."""

    rows: list[Row]
    equal: list[Equal]
    crowds: list[Crowd]


def run(setting: Setting, bundle: Bundle, tell: Callable[[str], None]) -> Found:
    """Measure a bundle's decoder and, unless it has to be quick, a larger model; `tell` hears what is being done."""
    torch.set_num_threads(setting.threads)
    found, dtype = Found([], [], []), DTYPES[setting.dtype]
    subjects = [Subject.of(bundle, dtype)]
    if not setting.quick:
        subjects.append(Subject.larger(SEED, dtype))
    for subject in subjects:
        tell(f"{subject.name}: equality")
        found.equal.extend(equality(subject))
        tell(f"{subject.name}: more than fits")
        found.crowds.append(crowd(subject))
        if subject.composer is not None:
            tell(f"{subject.name}: an agent's second step")
            found.rows.append(second_step(subject, setting.rounds))
            if not setting.quick and setting.dtype == "float32":  # as a mesh computes on a CPU
                tell(f"{subject.name}: the whole mesh")
                found.rows.append(whole_mesh(subject, bundle, setting.rounds))
        for n in setting.streams:
            tell(f"{subject.name}: speed, {n} streams")
            found.rows.extend(speeds(subject, n, setting))
    return found
