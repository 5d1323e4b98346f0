"""Keys and values of the sequences that run, each in a slot of its own.

Running sequences always fill slots 0 … n−1, so that a batch is a slice and never a copy; when one leaves, the last
takes its slot. Prompts are prefilled in the slots after them. Why no sequence is scattered over pages: docs/adr/0008.
"""

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from autoglm.decoder.engine.cache import BLOCK_SIZE


class Slots:
    """A tensor a layer: `stores`, each [slots, 2 · kv_heads, context, head_dim], keys before values.

    On a CPU the system allocates the pages of a slot when they are written, and gets them back when it is cleared.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self._maps: list[mmap.mmap] = []
        self.stores = [self._zeros(shape, dtype, device) for _ in range(layers)]

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return zeros: what comes after a short sequence is masked, and a masked NaN would still be a NaN."""
        if device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
        size = math.prod(shape) * dtype.itemsize
        self._maps.append(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        return torch.frombuffer(self._maps[-1], dtype=dtype).view(shape)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        for store in self.stores:
            store[target, :, :length] = store[source, :, :length]

    def swap(self, first: int, second: int, length: int) -> None:
        """Exchange the first `length` positions of two slots."""
        for store in self.stores:
            store[[first, second], :, :length] = store[[second, first], :, :length]

    def clear(self, slot: int, length: int) -> None:
        """Set the first `length` positions of a slot to zero, and return their memory to the system."""
        for store in self.stores:
            store[slot, :, :length] = 0
        for memory, store in zip(self._maps, self.stores, strict=False):  # no maps on a GPU
            row = store.stride(1) * store.itemsize  # one head's positions
            used = length * store.stride(2) * store.itemsize
            for head in range(store.shape[1]):
                start = slot * store.stride(0) * store.itemsize + head * row
                first, last = -(-start // mmap.PAGESIZE), (start + used) // mmap.PAGESIZE
                if last > first:
                    memory.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)

    def block(self, slot: int, number: int) -> Tensor:
        """Return a copy of one block of a slot: [layers, 2 · kv_heads, BLOCK_SIZE, head_dim]."""
        return torch.stack([store[slot, :, number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE] for store in self.stores])

    def put(self, slot: int, found: Sequence[Tensor], first: int = 0) -> None:
        """Copy the blocks `found`, each [layers, 2 · kv_heads, BLOCK_SIZE, head_dim], to a slot, from block number
        `first` on."""
        if found:
            start, stop = first * BLOCK_SIZE, (first + len(found)) * BLOCK_SIZE
            for store, parts in zip(self.stores, zip(*(block.unbind() for block in found), strict=True), strict=True):
                store[slot, :, start:stop] = torch.cat(parts, dim=1)
