"""The engine's speed compared with others on the same weights and prompts, and with the memory's bandwidth."""

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.bench.engine.model_under_test import CONTEXT, IN, OUT, SLOTS, WIDE, EngineBenchConfig, ModelUnderTest
from autoglm.bench.engine.peers import Answers, Continuous, Generate, Ours, Peer
from autoglm.bench.engine.vllm_peer import Vllm
from autoglm.bench.smoke import load, workloads
from autoglm.cli.api import Api
from autoglm.cli.local_mesh import running_mesh
from autoglm.common.bundle import Bundle
from autoglm.fusion.compose import Composer
from autoglm.fusion.prompt import Media, Prompt, PromptMessage
from autoglm.training.measured import Figure

SYSTEM_CHARACTERS = 3000  # of a phone agent's prompt


@dataclass(frozen=True, slots=True)
class EngineComparison:
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
) -> EngineComparison:
    """Return the comparison of the rounds of both sides."""
    ratio = Figure.of([mine / other for mine, other in zip(ours, peer, strict=True)])
    return EngineComparison(model, measure, Figure.of(ours), Figure.of(peer), ratio, goal, at_most)


def interleaved(peers: Mapping[str, Peer], model: ModelUnderTest, n: int, rounds: int) -> dict[str, list[Answers]]:
    """Ask everyone the same `n` prompts in every round, in an order of its own, after one round that warms up."""
    found: dict[str, list[Answers]] = {name: [] for name in peers}
    for number in range(rounds + 1):
        order = list(peers)
        random.Random(number).shuffle(order)
        for name in order:
            found[name].append(peers[name].answer(model.ids(n, seed=number), OUT))
    return {name: answers[1:] for name, answers in found.items()}


GOALS = {1: 1.0, 8: 1.3, 32: 1.5}  # of decoding compared with transformers' generate, by streams


def speeds(model: ModelUnderTest, n: int, config: EngineBenchConfig) -> Iterator[EngineComparison]:
    """Yield tokens a second of `n` streams compared with transformers; for one stream also a token's time against the
    memory's bandwidth, for the most streams also continuous batching."""
    last, compiled, rounds = n == max(config.streams), not config.quick, config.rounds
    engine = Ours(model.glm, model.fusion, config.limits)
    peers: dict[str, Peer] = {"engine": engine, "generate": Generate(model.source, compiled)}
    if last:
        peers["continuous"] = Continuous(model.source, n, IN + OUT)
    answers = interleaved(peers, model, n, rounds)
    engine.close()
    ours = [one.decode_rate for one in answers["engine"]]
    kind = "static cache, compiled" if compiled else "not compiled"
    label = f"decode tokens/s, {n} streams: generate, {kind}"
    yield row(model.name, label, ours, [one.decode_rate for one in answers["generate"]], GOALS[n])
    if n == 1:
        limit = 1000 * weight_bytes(model.source) / read_bandwidth(config.device)
        label = "ms a token, 1 stream: bytes of the weights / measured bandwidth"
        yield row(model.name, label, [1000 / rate for rate in ours], [limit] * rounds, 1.5, at_most=True)
    if last:
        whole, their = ([one.rate for one in answers[name]] for name in ("engine", "continuous"))
        yield row(model.name, f"tokens/s with prompts, {n} streams: continuous batching", whole, their, 4.0)


def against_vllm(model: ModelUnderTest, n: int, config: EngineBenchConfig) -> Iterator[EngineComparison]:
    """Yield tokens a second of `n` streams compared with vLLM, without the prompts and with them."""
    engine = Ours(model.glm, model.fusion, config.limits)
    vllm = Vllm(model.source, n, CONTEXT, config.threads)
    answers = interleaved({"engine": engine, "vllm": vllm}, model, n, config.rounds)
    engine.close()
    vllm.close()
    ours, theirs = answers["engine"], answers["vllm"]
    name = f"{n} streams: vLLM {vllm.version}"
    yield row(
        model.name, f"decode tokens/s, {name}", [a.decode_rate for a in ours], [a.decode_rate for a in theirs], 1.0
    )
    yield row(model.name, f"tokens/s with prompts, {name}", [a.rate for a in ours], [a.rate for a in theirs], 1.0)


def weight_bytes(source: GlmForCausalLM) -> int:
    """Return the bytes that a token's pass reads: every weight but the embedding, of which it reads one row."""
    total = sum(weight.numel() * weight.itemsize for weight in source.parameters())
    embedding = source.model.embed_tokens.weight
    return int(total - embedding.numel() * embedding.itemsize)


def read_bandwidth(device: str) -> float:
    """Return the bytes a second that torch reads from memory (a CPU's on its threads): the best of some sums over
    512 MiB, on a GPU 8 GiB."""
    big = torch.ones(2**27 if device == "cpu" else 2**31, device=device)

    def seconds() -> float:
        start = perf_counter()
        big.sum().item()
        return perf_counter() - start

    return big.numel() * big.itemsize / min(seconds() for _ in range(5))


def second_step(model: ModelUnderTest, config: EngineBenchConfig) -> EngineComparison:
    """Return the time to the first token of a phone agent's second step, compared with its first step's."""
    assert model.composer is not None
    ours = Ours(model.glm, model.fusion, replace(config.limits, enable_prefix_caching=True))
    first, second = agent_steps(model.composer, SYSTEM_CHARACTERS)
    times: list[list[float]] = [[], []]
    for number in range(config.rounds + 1):
        for prompt, kept in zip((first, second), times, strict=True):
            start = perf_counter()
            answers = ours.ask([prompt], [4], salt=b"%d" % number)  # nothing of the last round is known
            kept.append(1000 * (answers.stamps[0][0] - start))
    ours.close()
    label = f"ms to the first token, an agent's 2nd step: its 1st ({len(first.token_ids)} tokens)"
    return row(model.name, label, times[1][1:], times[0][1:], 0.5, at_most=True)


def agent_steps(composer: Composer, characters: int) -> tuple[Prompt, Prompt]:
    """Return two steps of a session: one long system prompt, in each step a new screenshot, the last one dropped."""
    rules = "".join(f"{n}. Before you tap, see that the page is the one that you expect.\n" for n in range(characters))
    torch.manual_seed(0)
    screens = [Media("image", torch.randn(49, 320)) for _ in range(2)]
    system, task = PromptMessage("system", (rules[:characters],)), "Open Camera."
    step = PromptMessage("assistant", ('<answer>do(action="Tap", element=[120,340])</answer>',))
    first = composer.compose([system, PromptMessage("user", (screens[0], task))])
    second = composer.compose(
        [system, PromptMessage("user", (task,)), step, PromptMessage("user", (screens[1], "Go on."))]
    )
    return first, second


def whole_mesh(model: ModelUnderTest, bundle: Bundle, rounds: int) -> EngineComparison:
    """Return tokens/s of a mesh that is started for it, over HTTP, compared with the bare engine's: 32 users of text.

    Nobody's answer ends before its last token: the mesh is told to say none that ends one.
    """
    assert model.composer is not None
    stops = model.source.generation_config.eos_token_id
    fields = {"logit_bias": dict.fromkeys(map(str, [stops] if isinstance(stops, int) else stops or []), -100)}
    engine, rates = Ours(model.glm, model.fusion, WIDE), {"mesh": list[float](), "engine": list[float]()}
    os.environ["AUTOGLM_BUNDLE"] = str(bundle.root)
    with running_mesh() as mesh:
        api = Api(mesh.http_url)
        for number in range(rounds + 1):
            asked = workloads.draw("text", SLOTS, number, lambda: None)
            prompts = [model.composer.compose(_messages(each), True) for each in asked]
            rates["engine"].append(engine.ask(prompts, [load.MAX_TOKENS] * SLOTS).rate)
            rates["mesh"].append(load.run(api, bundle.name, asked, SLOTS, lambda: None, fields).tokens_per_second)
    engine.close()
    label = f"tokens/s with prompts, {SLOTS} users of the whole mesh: the bare engine"
    return row(model.name, label, rates["mesh"][1:], rates["engine"][1:], 0.9)


def _messages(conversation: workloads.Messages) -> list[PromptMessage]:
    return [PromptMessage(turn["role"], (turn["content"],)) for turn in conversation]
