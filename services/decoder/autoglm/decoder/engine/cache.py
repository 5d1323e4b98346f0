"""The cache's blocks: those that sequences reserve and those of the prefix cache, within one capacity.

Only counts and keys are here; what a block is made of is the caller's. Where the keys come from: prefix_keys.py.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

BLOCK_SIZE = 64  # tokens

Block = TypeVar("Block")


def num_blocks(tokens: int) -> int:
    """Return how many blocks hold `tokens` tokens."""
    return -(-tokens // BLOCK_SIZE)


class BlockCache(Generic[Block]):
    """`capacity` blocks, shared by sequences and the prefix cache.

    Sequences come first: a prefix is kept only in blocks that no sequence has reserved, and the least recently used is
    evicted first. Questions (`fits`, `match`, `accepts`) change nothing that a sequence sees, commands never refuse.
    """

    def __init__(self, capacity: int, enable_prefix_caching: bool = True) -> None:
        self.capacity, self._enabled = capacity, enable_prefix_caching
        self.reserved = 0
        self._prefixes: OrderedDict[bytes, Block] = OrderedDict()

    @property
    def usage(self) -> float:
        """Return the share of the blocks that sequences have reserved."""
        return self.reserved / self.capacity

    def fits(self, more: int) -> bool:
        """Return whether sequences can reserve `more` blocks."""
        return self.reserved + more <= self.capacity

    def reserve(self, more: int) -> None:
        """Reserve `more` blocks for a sequence, evicting prefixes where there is no other way."""
        self.reserved += more
        self._evict()

    def release(self, blocks: int) -> None:
        """Take back what a sequence had reserved."""
        self.reserved -= blocks

    def match(self, keys: Sequence[bytes]) -> list[Block]:
        """Return the blocks of the longest cached prefix of `keys`."""
        found = list[Block]()
        for key in keys:
            if (block := self._prefixes.get(key)) is None:
                break
            self._prefixes.move_to_end(key)
            found.append(block)
        return found

    def accepts(self, key: bytes) -> bool:
        """Return whether a block with this key would be kept: it is new, and sequences leave space for it."""
        return self._enabled and key not in self._prefixes and self.reserved < self.capacity

    def store(self, key: bytes, block: Block) -> None:
        """Keep a block of a prefix, in place of the least recently used one if the cache is full."""
        self._prefixes[key] = block
        self._evict()

    def _evict(self) -> None:
        while self._prefixes and self.reserved + len(self._prefixes) > self.capacity:
            self._prefixes.popitem(last=False)
