"""A new fusion for a trained decoder: untrained, with closed gates, so that it hardly changes the decoder's text."""

import math
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from autoglm.bundles.sources import weight_files
from autoglm.common.bundle import BundleError
from autoglm.fusion.gcma.attention import GCMA
from autoglm.fusion.gcma.init import initialise, initialise_positions
from autoglm.fusion.gcma.model import GcmaConfig, GcmaFusion

# σ(−8) = .0003: what text takes from media is below half a step of bfloat16, and the gate still has a gradient.
GATE_BIAS = -8.0
EMBEDDING = "model.embed_tokens.weight"
_ROWS = 4096
_SEED = 5


def embedding_rms(decoder: Path) -> float:
    """Return the root mean square of the first rows of a decoder's token embeddings; only these rows are read.

    Raises BundleError when there are no embeddings, or when they are zero or not finite.
    """
    for file in weight_files(decoder):
        with safe_open(file, "pt") as opened:
            if EMBEDDING in opened.keys():  # noqa: SIM118
                size = float(opened.get_slice(EMBEDDING)[:_ROWS].float().square().mean().sqrt())
                if 0 < size < math.inf:
                    return size
                raise BundleError(f"the token embeddings in {file} are zero or not finite; restore the file")
    raise BundleError(f"{decoder} has no tensor {EMBEDDING}; use a GLM in transformers format")


def fresh_fusion(config: GcmaConfig) -> GcmaFusion:
    """Return an untrained fusion with closed gates, whose media tokens have the root mean square `config.max_added`.

    With the decoder's `embedding_rms` there, media tokens have the scale of word embeddings.
    """
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        model = GcmaFusion(config)
        initialise(model)
        with torch.no_grad():
            _set(model)
    return model


def _set(model: GcmaFusion) -> None:
    initialise_positions(model)
    # The input of `out` for media tokens comes from a norm: `width` elements with a root mean square of 1.
    nn.init.normal_(model.out.weight, std=model.config.max_added / math.sqrt(model.config.width))
    for gcma in model.attend.values():
        assert isinstance(gcma, GCMA)
        gcma.gate.weight.zero_()
        gcma.gate.bias.fill_(GATE_BIAS)
