"""Positions for rope (rotary position embeddings): one row that counts tokens, or three rows for multimodal rope."""

from collections.abc import Iterator

import torch
from torch import Tensor

from autoglm.fusion.prompt import Prompt, Run


def sequential_positions(tokens: int) -> Tensor:
    """Return positions [1, tokens] that count from 0."""
    return torch.arange(tokens)[None]


def multimodal_positions(prompt: Prompt) -> tuple[Tensor, int]:
    """Return positions [3, T] of multimodal rope (time, row, column), as GLM-4.1V and Qwen2-VL have them, and the next.

    Text counts on in all three rows. A medium with a grid (h, w) that starts at s has time s, rows s … s + h − 1 and
    columns s … s + w − 1, and what follows starts at s + max(h, w). Media without a grid count as text does.
    """
    if not prompt.runs:
        return torch.zeros(3, 0, dtype=torch.long), 0
    rows = list(_stretches(prompt.runs))
    positions = torch.cat(rows, dim=1)
    return positions, int(rows[-1].max()) + 1


def _stretches(runs: tuple[Run, ...]) -> Iterator[Tensor]:
    start = 0
    for run in runs:
        grid = () if run.media is None else run.media.grid
        positions = start + (_map(*grid) if grid else torch.arange(run.stop - run.start).expand(3, -1))
        yield positions
        start = int(positions.max()) + 1


def _map(high: int, wide: int) -> Tensor:
    """Return [3, high · wide]: 0, the row and the column of each token."""
    row, column = torch.arange(high), torch.arange(wide)
    return torch.stack([torch.zeros(high * wide, dtype=torch.long), row.repeat_interleave(wide), column.repeat(high)])
