"""Heads that teach the vision encoder what is where; they serve in training only."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MobileViTModel

from autoglm.fusion.gcma.init import initialise
from autoglm.training.data.catalog import APPS, COLOURS
from autoglm.training.data.screens import SCREEN_KINDS
from autoglm.training.stages.vision_data import BACKGROUND, IGNORE, MAX_COUNT, NAMES, ScreenBatch

DENSE = (len(NAMES) + 1, len(COLOURS), 2, 2)  # name or background, colour, off/on, offset in the cell
LOUDNESS = (1.0,) * DENSE[0] + (3.0,) * sum(DENSE[1:])  # few say colour, state and place, and many say the name
PAGE = (len(SCREEN_KINDS), len(APPS) + 1, MAX_COUNT + 1)
AUX_LAYERS = (2, 3)  # hidden states at strides 8 and 16
AUX_WEIGHT, BACKGROUND_WEIGHT, OFFSET_WEIGHT = 0.3, 0.5, 0.5


@dataclass(frozen=True, slots=True)
class Dense:
    """Predictions per cell of an S x S map: name [B, S, S, 37], colour [.., 8], on [.., 2], offset [.., 2]."""

    name: Tensor
    colour: Tensor
    on: Tensor
    offset: Tensor

    def cells(self, batch: ScreenBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return picture, row and column of the cell that holds each element's centre, int64 [N] each."""
        side = self.name.shape[1]
        column, row = (batch.centre * side).long().clamp(0, side - 1).unbind(1)
        return batch.index, row, column


@dataclass(frozen=True, slots=True)
class Seen:
    """All predictions for a batch: dense maps, coarsest (the one that matters) first, and the page's answers."""

    maps: tuple[Dense, ...]
    kind: Tensor
    app: Tensor
    count: Tensor


class Student(nn.Module):
    """The encoder with linear heads on its last map, on two finer maps, and on the mean of the last."""

    def __init__(self, encoder: MobileViTModel) -> None:
        super().__init__()
        self.encoder = encoder
        sizes = encoder.config.neck_hidden_sizes
        widths = (sizes[-1], *(sizes[layer + 1] for layer in AUX_LAYERS))
        self.dense = nn.ModuleList(nn.Linear(width, sum(DENSE)) for width in widths)
        self.page = nn.Linear(sizes[-1], sum(PAGE))
        initialise(self)

    def forward(self, images: Tensor) -> Seen:
        """Look at float images [B, 3, 224, 224]."""
        out = self.encoder(images, output_hidden_states=True)
        maps = [out.last_hidden_state, *(out.hidden_states[layer] for layer in AUX_LAYERS)]
        dense = (head(m.permute(0, 2, 3, 1)).float() for head, m in zip(self.dense, maps, strict=True))
        page = self.page(maps[0].mean((2, 3))).float().split(PAGE, -1)
        return Seen(tuple(Dense(*d.split(DENSE, -1)) for d in dense), *page)


def loss(seen: Seen, batch: ScreenBatch) -> Tensor:
    """Return the scalar loss of a batch."""
    last, *finer = (_dense_loss(dense, batch) for dense in seen.maps)
    total = last + AUX_WEIGHT * torch.stack(finer).sum()
    if int(batch.kind[0]) != IGNORE:
        total = total + F.cross_entropy(seen.kind, batch.kind) + F.cross_entropy(seen.app, batch.app)
        total = total + 0.5 * F.cross_entropy(seen.count, batch.count)
    return total


def _dense_loss(dense: Dense, batch: ScreenBatch) -> Tensor:
    cells = dense.cells(batch)
    empty = torch.ones(dense.name.shape[:3], dtype=torch.bool)
    empty[cells] = False
    background = dense.name[empty].logsumexp(-1) - dense.name[empty][:, BACKGROUND]
    side = dense.name.shape[1]
    offset = (batch.centre * side).frac() - 0.5
    return (
        _known(dense.name[cells], batch.name)
        + BACKGROUND_WEIGHT * (background.mean() if len(background) else background.sum())
        + _known(dense.colour[cells], batch.colour)
        + _known(dense.on[cells], batch.on)
        + OFFSET_WEIGHT * F.smooth_l1_loss(dense.offset[cells], offset, beta=0.1)
    )


def _known(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over the known targets, zero where none is known."""
    known = target != IGNORE
    return F.cross_entropy(logits[known], target[known]) if known.any() else logits.sum() * 0
