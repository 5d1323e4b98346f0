"""Keys and values: of running sequences in slots, of prefixes that may come again in blocks, both within one budget.

Running sequences always fill slots 0 … n−1, so that a batch is a slice and never a copy; when one leaves, the last
takes its slot. Why a sequence is not scattered over pages: docs/adr/0008.
"""

import math
import mmap
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from autoglm.decoder.engine.prefix_keys import BLOCK


def blocks(tokens: int) -> int:
    """Return how many blocks hold `tokens` tokens."""
    return -(-tokens // BLOCK)


class Slots:
    """A tensor a layer: `stores`, each [slots, 2 · kv_heads, context, head_dim], keys before values.

    On a CPU the system gives a slot's pages as they are written and takes them back when it is cleared.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self._maps: list[mmap.mmap] = []
        self.stores = [self._zeros(shape, dtype, device) for _ in range(layers)]

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return zeros: what stands behind a short sequence is masked, and a masked NaN would be a NaN all the same."""
        if device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
        size = math.prod(shape) * dtype.itemsize
        self._maps.append(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        return torch.frombuffer(self._maps[-1], dtype=dtype).view(shape)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        for store in self.stores:
            store[target, :, :length] = store[source, :, :length]

    def clear(self, slot: int, length: int) -> None:
        """Make the first `length` positions of a slot zero again, and give their memory back."""
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
        """Return a copy of one block of a slot: [layers, 2 · kv_heads, BLOCK, head_dim]."""
        return torch.stack([store[slot, :, number * BLOCK : (number + 1) * BLOCK] for store in self.stores])

    def put(self, slot: int, found: Sequence[Tensor]) -> None:
        """Let a slot begin with the blocks `found`."""
        if found:
            for store, parts in zip(self.stores, zip(*(block.unbind() for block in found), strict=True), strict=True):
                store[slot, :, : len(found) * BLOCK] = torch.cat(parts, dim=1)


class Cache:
    """The slots and the prefixes, `capacity` blocks of both together.

    Sequences come first: a prefix is kept only in room that no sequence holds, and the one that nobody asked for
    longest goes first. Questions (`fits`, `match`) change nothing that a sequence sees, commands never refuse.
    """

    def __init__(self, slots: Slots, capacity: int, keep_prefixes: bool) -> None:
        self.slots, self.capacity, self._keep_prefixes = slots, capacity, keep_prefixes
        self.held = 0
        self._prefixes: OrderedDict[bytes, Tensor] = OrderedDict()

    @property
    def usage(self) -> float:
        """Return the share of the blocks that running sequences hold."""
        return self.held / self.capacity

    def fits(self, more: int) -> bool:
        """Return whether sequences may hold `more` blocks."""
        return self.held + more <= self.capacity

    def hold(self, more: int) -> None:
        """Give sequences `more` blocks (or take them back), at the cost of prefixes."""
        self.held += more
        while self._prefixes and self.held + len(self._prefixes) > self.capacity:
            self._prefixes.popitem(last=False)

    def match(self, keys: Sequence[bytes]) -> list[Tensor]:
        """Return the blocks of the longest known prefix of `keys`."""
        found = list[Tensor]()
        for key in keys:
            if (block := self._prefixes.get(key)) is None:
                break
            self._prefixes.move_to_end(key)
            found.append(block)
        return found

    def keep(self, key: bytes, slot: int, number: int) -> None:
        """Remember block `number` of `slot` under `key`, where there is room or an older prefix to give way."""
        if not self._keep_prefixes or key in self._prefixes or self.held >= self.capacity:
            return
        self._prefixes[key] = self.slots.block(slot, number)
        self.hold(0)
