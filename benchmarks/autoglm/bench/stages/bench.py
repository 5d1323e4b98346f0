"""The order of `autoglm bench stages`: encoders and decoder in this process, then single requests to a mesh."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers.utils.logging import disable_progress_bar

from autoglm.bench.plan.costs import GatewayCost, StageCosts
from autoglm.bench.stages.decoder import measure_decoder
from autoglm.bench.stages.encoders import measure_speech, measure_vision
from autoglm.common.bundle import Bundle

GATEWAY_BYTES = 115_000_000  # with its reader process, proportional set size: docs/operate.md, "Memory when idle"

Tell = Callable[[str, int, int], object]


@dataclass(frozen=True, slots=True)
class MeasuredStages:
    """The costs of a bundle, and the largest relative error of each fit."""

    model: str
    costs: StageCosts
    errors: Mapping[str, float]


def measure_stages(bundle: Bundle, tell: Tell) -> MeasuredStages:
    """Return what the stages of `bundle` cost on this machine's CPU; what only a mesh shows (mesh.py) is 0.

    Raises ToolsMissing and BundleError.
    """
    disable_progress_bar()  # of every model that is loaded
    cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // 2))  # as `threads: 0` means
    tell("Measuring vision", 0, 3)
    vision, vision_error = measure_vision(bundle)
    tell("Measuring speech", 1, 3)
    speech, speech_error = measure_speech(bundle)
    tell("Measuring the decoder", 2, 3)
    decoder = measure_decoder(bundle)
    tell("Measuring the decoder", 3, 3)
    costs = StageCosts(
        device=f"a CPU of {cores} cores",
        cores=cores,
        memory_bytes=psutil.virtual_memory().total,
        on_cpu=True,
        gateway=GatewayCost(request_s=0, token_s=0, request_cpu_s=0, token_cpu_s=0, memory_bytes=GATEWAY_BYTES),
        vision=vision,
        speech=speech,
        decoder=decoder.cost,
    )
    errors = {"prefill": decoder.prefill_error, "decode": decoder.decode_error}
    return MeasuredStages(bundle.name, costs, {"vision": vision_error, "speech": speech_error, **errors})


def read_stages(bundle: Bundle, path: Path) -> MeasuredStages:
    """Return the costs in a result of `autoglm bench stages`; raises PlanError."""
    return MeasuredStages(bundle.name, StageCosts.load(path), {})
