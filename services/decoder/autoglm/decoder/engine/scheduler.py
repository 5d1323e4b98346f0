"""Which sequence computes when: continuous batching with admission, chunked prefill, preemption and backpressure.

A sequence waits, is prefilled, runs and finishes. It goes back to waiting, with what it has generated, when the cache
is full and it came last (preemption), or when its consumer does not keep up (backpressure). Nothing here computes,
measures time or knows a thread: it works on plain data, and is tested with plain data.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from autoglm.decoder.engine.cache import BlockCache, num_blocks
from autoglm.decoder.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the engine may use: sequences at a time, prompt tokens in a step, blocks of cache, and whether prefixes are
    kept. A sequence of the model's full context must fit in the cache."""

    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int
    enable_prefix_caching: bool = True


class SlotMemory(Protocol):
    """The memory behind the slots; see slots.py."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""

    def clear(self, slot: int, length: int) -> None:
        """Free the first `length` positions of a slot."""


class Scheduler:
    """Sequences in the order in which they get their turn.

    `waiting` is first come, first served. Sequence i of `running` has slot i, and `prefilling` the slot after them; so
    a batch is a slice of the slots. `paused` are those whose consumers do not keep up; they hold no slot and no blocks.
    """

    def __init__(self, limits: EngineLimits, cache: BlockCache[Any], slots: SlotMemory) -> None:
        self.limits, self._cache, self._slots = limits, cache, slots
        self.waiting: deque[Sequence] = deque()
        self.prefilling: Sequence | None = None
        self.running: list[Sequence] = []
        self.paused: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def placed(self) -> list[Sequence]:
        """Return the sequences that have slots, in the order of these."""
        return [*self.running, *([self.prefilling] if self.prefilling else [])]

    @property
    def has_work(self) -> bool:
        """Return whether a step would do something."""
        return bool(self.running or self.prefilling or self.waiting)

    @property
    def num_pending_tokens(self) -> int:
        """Return how many tokens have to be prefilled before a new sequence's turn."""
        ahead = [*self.waiting, *([self.prefilling] if self.prefilling else [])]
        return sum(sequence.num_tokens - sequence.num_computed_tokens for sequence in ahead)

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence at the end of the queue."""
        self.waiting.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence in whatever state it is."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        elif sequence in self.paused:
            self.paused.remove(sequence)
        else:
            self.release(sequence)

    # --- prefill ------------------------------------------------------------------------------------

    def admit(self) -> Sequence | None:
        """Admission: return the sequence to prefill, the first of those that wait unless one is under way.

        None when nothing waits, no slot is free, or the cache has no blocks for all of its tokens and one more.
        """
        if self.prefilling is not None:
            return self.prefilling
        if not self.waiting or len(self.running) == self.limits.max_num_seqs:
            return None
        need = num_blocks(self.waiting[0].num_tokens + 1)
        if not self._cache.fits(need):
            return None
        self.prefilling = self.waiting.popleft()
        self._reserve(self.prefilling, need)
        return self.prefilling

    def prefill_chunk(self, sequence: Sequence, budget: int) -> int:
        """Chunked prefill: return how many tokens of `sequence` come next, when a step has `budget` left.

        A long prompt is prefilled over several steps, so that running answers go on in between.
        """
        return min(budget, sequence.num_tokens - sequence.num_computed_tokens)

    def run(self, sequence: Sequence) -> None:
        """Let a sequence whose prompt is prefilled decode from now on; it keeps its slot."""
        self.prefilling = None
        self.running.append(sequence)

    # --- decode -------------------------------------------------------------------------------------

    def reserve_blocks(self) -> None:
        """Reserve the block of each running sequence's next token. Preemption: where the cache is full, the sequences
        that arrived last give theirs up, so that those that wait longest never do."""
        for sequence in sorted(self.running, key=_arrival):
            if not sequence.num_blocks:  # preempted for an earlier one
                continue
            more = num_blocks(sequence.num_computed_tokens + 1) - sequence.num_blocks
            while sequence.num_blocks and not self._cache.fits(more):
                self.preempt(max(self.placed, key=_arrival))
            if sequence.num_blocks:
                self._reserve(sequence, more)

    def preempt(self, sequence: Sequence) -> None:
        """Take a sequence's slot and blocks and put it at the head of the queue; it keeps what it has generated."""
        self.num_preemptions += 1
        self.release(sequence)
        self.waiting.appendleft(sequence)

    def pause_slow_consumers(self) -> None:
        """Backpressure: take the slots of sequences whose consumers do not keep up, and queue again those that have
        caught up, at the head and in their order."""
        for sequence in [sequence for sequence in self.running if sequence.is_backlogged]:
            self.release(sequence)
            self.paused.append(sequence)
        resumed = [sequence for sequence in self.paused if not sequence.is_backlogged]
        self.paused = [sequence for sequence in self.paused if sequence.is_backlogged]
        self.waiting.extendleft(reversed(resumed))

    # --- slots --------------------------------------------------------------------------------------

    def slot(self, sequence: Sequence) -> int:
        """Return the slot of a sequence that has one."""
        return len(self.running) if sequence is self.prefilling else self.running.index(sequence)

    def release(self, sequence: Sequence) -> None:
        """Free a sequence's slot and blocks. The last running sequence moves into the slot, and the one that is being
        prefilled into that one's."""
        slot = self.slot(sequence)
        self._slots.clear(slot, sequence.num_computed_tokens)
        if sequence is self.prefilling:
            self.prefilling = None
        else:
            self._close_gap(slot)
        self._cache.release(sequence.num_blocks)
        sequence.num_blocks = sequence.num_computed_tokens = 0
        sequence.inputs = None

    def _close_gap(self, slot: int) -> None:
        last = self.running.pop()
        end = len(self.running)
        if slot < end:
            self.running[slot] = last
            self._move(last, end, slot)
        if self.prefilling is not None:
            self._move(self.prefilling, end + 1, end)

    def _move(self, sequence: Sequence, source: int, target: int) -> None:
        self._slots.move(source, target, sequence.num_computed_tokens)
        self._slots.clear(source, sequence.num_computed_tokens)

    def _reserve(self, sequence: Sequence, more: int) -> None:
        sequence.num_blocks += more
        self._cache.reserve(more)


def _arrival(sequence: Sequence) -> tuple[float, int]:
    return sequence.request.arrival_time, sequence.request.id
