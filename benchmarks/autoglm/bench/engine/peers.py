"""The embedded engine and those of transformers, all asked the same way: prompts in, tokens out, and when
each token came."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.decoder.engine.core import EngineCore
from autoglm.decoder.engine.engine import EmbeddedEngine
from autoglm.decoder.engine.models.glm import Glm
from autoglm.decoder.engine.request import Request, RequestOutput, SamplingConfig
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.scheduler import EngineLimits
from autoglm.fusion.gcma.model import GcmaFusion
from autoglm.fusion.prompt import Prompt, Run

GREEDY = 0.0
PAGE, MOST_TOKENS = 64, 512  # of transformers' continuous batching


@dataclass(frozen=True, slots=True)
class Answers:
    """What was said to each prompt, the seconds that all of it took, and when each token came."""

    tokens: Sequence[Sequence[int]]
    seconds: float
    stamps: Sequence[Sequence[float]]

    @property
    def rate(self) -> float:
        """Tokens of all answers a second, the reading of the prompts included."""
        return sum(map(len, self.tokens)) / self.seconds

    @property
    def decode_rate(self) -> float:
        """Tokens a second while every answer was under way: all prompts read, none at its end."""
        start, end = max(stamps[0] for stamps in self.stamps), min(stamps[-1] for stamps in self.stamps)
        return sum(start < at <= end for stamps in self.stamps for at in stamps) / (end - start)


class Peer(Protocol):
    """An engine that answers prompts of token ids, all of one length, with `tokens` tokens each."""

    def answer(self, prompts: Sequence[Sequence[int]], tokens: int) -> Answers:
        """Return the likeliest tokens, one after another."""


def plain(token_ids: Sequence[int]) -> Prompt:
    """Return a prompt of text alone."""
    return Prompt(list(token_ids), (Run(0, len(token_ids), enriched=False),), "")


class Ours:
    """The embedded engine; every answer runs to its full length."""

    def __init__(self, glm: Glm, fusion: GcmaFusion, limits: EngineLimits) -> None:
        self.limits = limits
        runner = Runner(glm, fusion, limits.max_num_seqs, limits.max_num_batched_tokens)
        self.engine = EmbeddedEngine(EngineCore(runner, limits, stops=()))

    def answer(self, prompts: Sequence[Sequence[int]], tokens: int) -> Answers:
        """Return the likeliest tokens after each prompt."""
        return self.ask([plain(prompt) for prompt in prompts], [tokens] * len(prompts))

    def ask(
        self,
        prompts: Sequence[Prompt],
        lengths: Sequence[int],
        salt: bytes = b"",
        between: Callable[[], None] = lambda: None,
    ) -> Answers:
        """Submit all prompts at once and return the greedy answers, of `lengths` tokens; raises what failed.

        `between` is called at every token, in the engine's thread.
        """
        start, pending = time.perf_counter(), [_Pending(between) for _ in prompts]
        for prompt, length, sink in zip(prompts, lengths, pending, strict=True):
            sampling = SamplingConfig(temperature=GREEDY, max_tokens=length)
            context = self.engine.core.runner.context
            self.engine.submit(Request(prompt, sampling, context, salt), sink)
        for sink in pending:
            sink.wait()
        seconds = time.perf_counter() - start
        return Answers([sink.tokens for sink in pending], seconds, [sink.stamps for sink in pending])

    def close(self) -> None:
        """Stop the engine's thread."""
        self.engine.close()


class _Pending:
    """Takes one answer from the engine's thread."""

    def __init__(self, between: Callable[[], None]) -> None:
        self._between = between
        self.tokens: list[int] = []
        self.stamps: list[float] = []
        self._end: SimpleQueue[str | Exception] = SimpleQueue()

    def __call__(self, output: RequestOutput) -> None:
        if output.token is not None:
            self.tokens.append(output.token.token_id)
            self.stamps.append(time.perf_counter())
            self._between()
        if output.finish is not None:
            self._end.put(output.finish)

    def wait(self) -> None:
        """Wait for the end; raises what ended the answer, if anything did."""
        reason = self._end.get()
        if isinstance(reason, Exception):
            raise reason


class Generate:
    """transformers' generate over one batch. With `compiled` as its docs advise: a static cache and torch.compile, to
    which it sees by itself on a GPU."""

    def __init__(self, model: GlmForCausalLM, compiled: bool) -> None:
        self._model, self._compiled = model, compiled
        self._forward: Callable[..., Any] = model.forward
        if compiled and model.device.type == "cpu":
            torch._dynamo.reset()  # else it gives up compiling after eight shapes, those of earlier models among them
            self._forward = torch.compile(model.forward, dynamic=False)

    def answer(self, prompts: Sequence[Sequence[int]], tokens: int) -> Answers:
        """Return the likeliest tokens after each prompt."""
        ids, stamps = torch.tensor(prompts, device=self._model.device), list[float]()

        def note(_: Tensor, scores: Tensor) -> Tensor:
            stamps.append(time.perf_counter())
            return scores

        plainly, self._model.forward = self._model.forward, self._forward
        start = time.perf_counter()
        try:
            said = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                cache_implementation="static" if self._compiled else None,
                logits_processor=LogitsProcessorList([note]),
            )
        finally:
            self._model.forward = plainly
        seconds = time.perf_counter() - start
        return Answers(said[:, ids.shape[1] :].tolist(), seconds, [stamps] * len(prompts))


class Continuous:
    """transformers' continuous batching. Its manager stays between calls, with room for just what is asked: by itself
    it would make a cache of most of the memory in every call, and spend its time with that."""

    def __init__(self, model: GlmForCausalLM, streams: int, tokens: int) -> None:
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)  # it warns of what is wanted here
        self._model = model
        blocks = streams * -(-tokens // PAGE) + streams
        self._config = ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=blocks, max_batch_tokens=MOST_TOKENS, allow_block_sharing=False
        )

    def answer(self, prompts: Sequence[Sequence[int]], tokens: int) -> Answers:
        """Return the likeliest tokens after each prompt."""
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        start = time.perf_counter()
        outputs = self._model.generate_batch(
            [list(prompt) for prompt in prompts],
            generation_config=config,
            continuous_batching_config=self._config,
            record_timestamps=True,
            persistent_manager=True,
        )
        seconds = time.perf_counter() - start
        ordered = outputs.values()
        return Answers([one.generated_tokens for one in ordered], seconds, [one.timestamps for one in ordered])
