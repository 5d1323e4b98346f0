"""What the decoder's passes cost, measured in this process: whole steps of its engine, sampling included."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch

from autoglm.bench.engine.model_under_test import CONTEXT, SEED, SLOTS, WIDE, ModelUnderTest
from autoglm.bench.engine.peers import GREEDY, plain
from autoglm.bench.plan.costs import DecoderCost
from autoglm.bench.stages.fit import TimedPass, fitted, worst_error
from autoglm.common.bundle import Bundle
from autoglm.decoder.engine.cache import BLOCK_SIZE
from autoglm.decoder.engine.core import EngineCore
from autoglm.decoder.engine.request import Request, SamplingConfig
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.settings import DecoderSettings

DECODER_BYTES = 416_000_000  # proportional set size: docs/operate.md, "Memory when idle"
PREFILLS, PREFILL_REPEATS = (16, 32, 64, 128, 256, 1024), 3
STREAMS, PROMPTS, STEPS = (1, 2, 4, 8, 16, SLOTS), (64, 256), 10


@dataclass(frozen=True, slots=True)
class MeasuredDecoder:
    """The costs, and the largest relative error of each fit."""

    cost: DecoderCost
    prefill_error: float
    decode_error: float


def measure_decoder(bundle: Bundle) -> MeasuredDecoder:
    """Return what prefill and decode steps cost with the weights of `bundle`."""
    model = ModelUnderTest.of(bundle, torch.float32, "cpu")
    core = EngineCore(Runner(model.glm, model.fusion, SLOTS, WIDE.max_num_batched_tokens), WIDE, stops=())
    prefills, decodes = list(_prefills(core, model)), list(_decodes(core, model))
    cost = DecoderCost(
        prefill=fitted(prefills),
        decode=fitted(decodes),
        max_num_seqs=DecoderSettings.model_fields["max_num_seqs"].default,
        max_num_batched_tokens=WIDE.max_num_batched_tokens,
        max_model_len=model.source.config.max_position_embeddings,
        kv_bytes_per_token=model.glm.block_bytes // BLOCK_SIZE,
        memory_bytes=DECODER_BYTES,
    )
    return MeasuredDecoder(cost, worst_error(cost.prefill, prefills), worst_error(cost.decode, decodes))


def _prefills(core: EngineCore, model: ModelUnderTest) -> Iterator[TimedPass]:
    """Yield the steps of prompts that get no second token, each the median of some."""
    for length in PREFILLS:
        runs = [list(_prefill(core, model, length, seed)) for seed in range(1 + PREFILL_REPEATS)][1:]
        for same in zip(*runs, strict=True):
            yield TimedPass(same[0].tokens, same[0].context, median(each.seconds for each in same))


def _prefill(core: EngineCore, model: ModelUnderTest, length: int, seed: int) -> Iterator[TimedPass]:
    core.add(_request(model, length, 1, seed))
    for start in range(0, length, WIDE.max_num_batched_tokens):
        tokens = min(WIDE.max_num_batched_tokens, length - start)
        yield TimedPass(tokens, tokens * (start + tokens / 2), _step(core))


def _decodes(core: EngineCore, model: ModelUnderTest) -> Iterator[TimedPass]:
    """Yield decode steps of several streams, each the median of some."""
    for length in PROMPTS:
        for streams in STREAMS:
            for seed in range(streams):
                core.add(_request(model, length, CONTEXT - length, SEED + seed))
            while core.load.prefilling or core.load.waiting:
                _step(core)
            context = sum(sequence.num_computed_tokens for sequence in core.scheduler.running)
            seconds = median(_step(core) for _ in range(STEPS))
            yield TimedPass(streams, context + streams * STEPS / 2, seconds)
            for sequence in list(core.scheduler.running):
                core.abort(sequence.request.id)


def _step(core: EngineCore) -> float:
    """Do a step, and return its seconds of CPU."""
    started = time.thread_time()
    for _ in core.step():
        pass
    return time.thread_time() - started


def _request(model: ModelUnderTest, length: int, answer: int, seed: int) -> Request:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(100, model.glm.config.vocab_size - 100, (length,), generator=draw).tolist()
    return Request(plain(ids), SamplingConfig(temperature=GREEDY, max_tokens=answer), CONTEXT)
