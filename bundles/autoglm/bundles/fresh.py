"""A fusion for a decoder that can already talk: untrained, and so quiet that the decoder hardly notices."""

import math
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from autoglm.bundles.sources import weight_files
from autoglm.common.bundle import BundleError
from autoglm.fusion.gcma.init import initialise, initialise_places
from autoglm.fusion.gcma.model import GCMA, GcmaConfig, GcmaFusion

# σ(−8) = .0003: what a word takes from media is below half a step of bfloat16, and the gate has a slope to learn by.
GATE_BIAS = -8.0
EMBEDDING = "model.embed_tokens.weight"
_ROWS = 4096
_SEED = 5


def loudness(decoder: Path) -> float:
    """Return the root mean square of the first rows of a decoder's token embeddings; no more of them is read.

    Raises BundleError when there are none, or no ordinary numbers.
    """
    for file in weight_files(decoder):
        with safe_open(file, "pt") as opened:
            if EMBEDDING in opened.keys():  # noqa: SIM118
                size = float(opened.get_slice(EMBEDDING)[:_ROWS].float().square().mean().sqrt())
                if 0 < size < math.inf:
                    return size
                raise BundleError(f"the token embeddings in {file} are zero or no numbers; restore the file")
    raise BundleError(f"{decoder} has no tensor {EMBEDDING}; give a GLM as transformers saves it")


def fresh_fusion(config: GcmaConfig) -> GcmaFusion:
    """Return an untrained fusion whose gates are closed and whose media tokens have the size `config.max_added`.

    Where that is the decoder's `loudness`, media are as loud as words, and nothing drowns a word.
    """
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        model = GcmaFusion(config)
        initialise(model)
        with torch.no_grad():
            _set(model)
    return model


def _set(model: GcmaFusion) -> None:
    initialise_places(model)
    # Media tokens come to `out` from a norm: `width` elements with a root mean square of 1.
    nn.init.normal_(model.out.weight, std=model.config.max_added / math.sqrt(model.config.width))
    for gcma in model.attend.values():
        assert isinstance(gcma, GCMA)
        gcma.gate.weight.zero_()
        gcma.gate.bias.fill_(GATE_BIAS)
