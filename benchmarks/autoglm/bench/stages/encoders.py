"""What the encoders cost, measured in this process: decoding of the file, and batches of every size."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch

from autoglm.bench.engine.model_under_test import SEED
from autoglm.bench.plan.costs import EncoderCost
from autoglm.bench.smoke.workloads import draw
from autoglm.bench.stages.fit import TimedPass, fitted, worst_error
from autoglm.bench.stages.media import media_of
from autoglm.common.bundle import Bundle
from autoglm.common.serve_settings import EncoderSettings
from autoglm.speech.audio import decode
from autoglm.speech.cut import cut
from autoglm.speech.model import SAMPLE_RATE, SpeechModel
from autoglm.speech.settings import SpeechSettings
from autoglm.vision.models import load_vision_model
from autoglm.vision.settings import VisionSettings

REPEATS = 5
VISION_BYTES, SPEECH_BYTES = 436_000_000, 445_000_000  # proportional set size: docs/operate.md, "Memory when idle"
CLIP_SECONDS = (1, 3)  # and the longest piece

Measured = tuple[EncoderCost, float]  # with the largest relative error of its fit


def cpu_seconds(do: Callable[[], object]) -> float:
    """Return the median seconds of CPU of `do` in this thread, after one call that warms up: they say the same however
    busy the machine is."""
    times = []
    for _ in range(REPEATS + 1):
        started = time.thread_time()
        do()
        times.append(time.thread_time() - started)
    return median(times[1:])


def measure_vision(bundle: Bundle) -> Measured:
    """Return what a picture costs; raises ToolsMissing."""
    model, settings = load_vision_model(bundle.part("vision")), VisionSettings.model_validate({})
    picture = _drawn("screen")
    item = model.preprocess(picture)
    passes = [TimedPass(size, 0, cpu_seconds(partial(model.encode, [item] * size))) for size in _sizes(settings)]
    (encoded,) = model.encode([item])
    cost = EncoderCost(
        hop_s=0,
        preprocess_s=cpu_seconds(partial(model.preprocess, picture)),
        preprocess_threads=torch.get_num_threads(),
        forward=fitted(passes),
        max_batch=settings.max_batch,
        batch_wait_s=settings.batch_wait_s,
        tokens_per_unit=len(encoded.tokens),
        embedding_bytes_per_unit=2 * encoded.tokens.numel(),
        memory_bytes=VISION_BYTES,
    )
    return cost, worst_error(cost.forward, passes)


def measure_speech(bundle: Bundle) -> Measured:
    """Return what a second of sound costs; raises ToolsMissing."""
    model, settings = SpeechModel.from_pretrained(bundle.part("speech")), SpeechSettings.model_validate({})
    recording, most = _drawn("voice"), model.piece_seconds * SAMPLE_RATE
    samples = decode(recording, settings.max_audio_seconds)
    long_enough = np.resize(samples, most)
    passes = []
    for length in (*CLIP_SECONDS, model.piece_seconds):
        clip = long_enough[: length * SAMPLE_RATE]
        for size in _sizes(settings):
            passes.append(TimedPass(size * length, 0, cpu_seconds(partial(model.encode, [clip] * size))))
    tokens = model.encode([long_enough])[0].tokens
    preprocess = cpu_seconds(lambda: cut(decode(recording, settings.max_audio_seconds), most))
    cost = EncoderCost(
        hop_s=0,
        preprocess_s=preprocess * SAMPLE_RATE / len(samples),
        preprocess_threads=torch.get_num_threads(),
        forward=fitted(passes),
        max_batch=settings.max_batch,
        batch_wait_s=settings.batch_wait_s,
        piece_units=model.piece_seconds,
        tokens_per_unit=len(tokens) / model.piece_seconds,
        embedding_bytes_per_unit=2 * tokens.numel() // model.piece_seconds,
        memory_bytes=SPEECH_BYTES,
    )
    return cost, worst_error(cost.forward, passes)


def _sizes(settings: EncoderSettings) -> list[int]:
    """Return the sizes of batches to measure: 1, 2, 4, up to the largest."""
    return sorted({min(2**power, settings.max_batch) for power in range(settings.max_batch.bit_length() + 1)})


def _drawn(workload: str) -> bytes:
    """Return the file in a request of `workload`."""
    (messages,) = draw(workload, 1, SEED, lambda: None)
    return next(data for _, data in media_of(messages))
