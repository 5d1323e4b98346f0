"""Keys and values of every running sequence, in slots: sequence i of the batch is slot i.

Running sequences always fill slots 0 … n−1, so that a batch is a slice and never a copy; when one
leaves, the last takes its slot.
"""

import math

import numpy as np
import torch
from torch import Tensor


class SlotCache:
    """Preallocated tensors of `shape` [slots, kv_heads, context, head_dim], two a layer; pages
    are touched only when used.

    transformers' attention layers call `update` as they would on their own Cache. `target` says
    what the current forward pass writes: the slots, and where in each.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.keys = [_zeros(shape, dtype, device) for _ in range(layers)]
        self.values = [_zeros(shape, dtype, device) for _ in range(layers)]
        self._slots = slice(0, 0)
        self._positions = torch.empty(0, dtype=torch.long)
        self._visible = 0

    def target(self, slots: slice, positions: Tensor) -> None:
        """Aim the next forward pass: `positions` [n, t] of the tokens that each slot of `slots` takes."""
        self._slots, self._positions = slots, positions
        self._visible = int(positions.max()) + 1

    def mask(self) -> Tensor:
        """Return which positions each token of the pass sees: bool [n, 1, t, visible]."""
        seen = torch.arange(self._visible, device=self._positions.device)
        return (seen <= self._positions[..., None])[:, None]

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store [n, heads, t, head_dim] and return all that the pass can see, without a copy."""
        for store, new in ((self.keys[layer], keys), (self.values[layer], values)):
            index = self._positions[:, None, :, None].expand_as(new)
            store[self._slots].scatter_(2, index, new)
        return (
            self.keys[layer][self._slots, :, : self._visible],
            self.values[layer][self._slots, :, : self._visible],
        )

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        for store in (*self.keys, *self.values):
            store[target, :, :length] = store[source, :, :length]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros: what stands behind a short sequence is masked, and a masked NaN would be a NaN all the same."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # NumPy's zeros come from calloc, page by page as they are used; torch's would touch every page now.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
