"""Where the joint stage starts: the projections into the common space read what the encoders' own heads read.

An encoder's features say much that no task asks for; what they say of a name or a colour is a small part of
their energy. Started at random, fusion finds the right place on the screen and takes thousands of steps to read
a colour there (docs/log.md). The heads that taught the encoder know the directions that matter.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autoglm.common.modalities import MediaKind
from autoglm.fusion.gcma.model import GcmaFusion
from autoglm.training.stages.features import FeatureStore

ITEMS = 400  # of each modality, to know how far each reading spreads
RANDOM_SHARE: dict[MediaKind, float] = {"image": 0.3, "audio": 1.0}  # of the random start that is kept with the heads'
HEADS: dict[MediaKind, str] = {"image": "vision-heads.safetensors", "audio": "speech-heads.safetensors"}


def save_head(workdir: Path, kind: MediaKind, rows: Tensor, weights: Tensor) -> None:
    """Keep a linear head's rows [H, width], and the weight of each reading [H], for `align`."""
    tensors = {"rows": rows.detach().float().contiguous(), "weights": weights.float()}
    save_file(tensors, workdir / HEADS[kind])


def align(model: GcmaFusion, store: FeatureStore, workdir: Path) -> None:
    """Start the projection of each modality from its head, in place."""
    shelves: dict[MediaKind, list[Tensor]] = {"image": store.screens, "audio": store.clips}
    for kind, items in shelves.items():
        head = load_file(workdir / HEADS[kind])
        features = torch.cat(items[:: max(1, len(items) // ITEMS)]).float()
        _start(model.media_in[kind], head["rows"], head["weights"], features, RANDOM_SHARE[kind])


@torch.no_grad()
def _start(projection: nn.Module, rows: Tensor, weights: Tensor, features: Tensor, random_share: float) -> None:
    """Let `projection` (a norm, then a linear layer to d) spread the standardised readings over all d dimensions."""
    norm, linear = projection.children()
    assert isinstance(linear, nn.Linear)
    readings = norm(features) @ rows.T
    scale = weights / readings.std(0).clamp(min=1e-6)
    spread = torch.randn(linear.out_features, len(rows)) / math.sqrt(len(rows))
    linear.weight.mul_(random_share).add_(spread @ (rows * scale[:, None]))
    linear.bias.copy_(spread @ (-readings.mean(0) * scale))
