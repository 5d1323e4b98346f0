"""Which sequence computes when: continuous batching with admission, chunked prefill, preemption and backpressure.

A sequence waits, is prefilled, runs and finishes. It goes back to waiting, with what it has generated, when the cache
is full and it came last (preemption), or when its consumer does not keep up (backpressure). Several prompts may be
prefilled at a time: they share the tokens of each step, those with the fewest left first (see PrefillBudget). Nothing
here computes, measures time or knows a thread: it works on plain data, and is tested with plain data.
"""

from collections.abc import Sequence as Rows
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

    def swap(self, first: int, second: int, length: int) -> None:
        """Exchange the first `length` positions of two slots."""


@dataclass(frozen=True, slots=True)
class PrefillShare:
    """What a step may prefill: `tokens` in one pass, and `per_pass` fewer for each further one, which is as much work
    as so many tokens."""

    tokens: int
    per_pass: int = 0


@dataclass(slots=True)
class PrefillBudget:
    """The tokens of prompts that are left in a step.

    `kept` of them are for `first`, the prompt that arrived first, until it has had its share: a long one always goes
    on, and as each is the first in the end, none starves. `admits` says whether waiting sequences may get slots. Each
    pass takes `per_pass` of what is left for the others. So many tokens and passes have been taken.
    """

    left: int
    kept: int
    per_pass: int
    first: Sequence | None
    admits: bool
    num_tokens: int = 0
    num_passes: int = 0

    def share(self, sequence: Sequence) -> int:
        """Return how many tokens a sequence can get now."""
        first, need = self.first, sequence.num_tokens_to_prefill
        if first is None:
            return min(need, self.left)
        kept = min(self.kept, first.num_tokens_to_prefill)
        return min(need, max(self.left, kept) if first is sequence else self.left - kept)

    def take(self, sequence: Sequence) -> int:
        """Chunked prefill: take a sequence's share, and return it.

        A long prompt is prefilled over several steps, so that running answers and shorter prompts go on in between.
        """
        tokens = self.share(sequence)
        self.left -= tokens + self.per_pass
        self.num_tokens += tokens
        self.num_passes += 1
        if sequence is self.first:
            self.first = None
        return tokens


def tokens_to_first(tokens: int, others: Rows[int]) -> int:
    """Return how many tokens are prefilled until a new prompt of `tokens` is done, where so many are left of each of
    `others`: its own, those of prompts that are not longer, and up to as many of longer ones; see PrefillBudget."""
    own = tokens + sum(left for left in others if left <= tokens)
    return own + min(own, sum(left for left in others if left > tokens))


class Scheduler:
    """Sequences and their slots.

    Sequence i of `running` has slot i, so a batch is a slice of the slots; those of `prefilling` have any of the slots
    after them. `paused` are those whose consumers do not keep up; they hold no slot and no blocks.
    """

    def __init__(self, limits: EngineLimits, cache: BlockCache[Any], slots: SlotMemory) -> None:
        self.limits, self._cache, self._slots = limits, cache, slots
        self.waiting: list[Sequence] = []
        self.prefilling: list[Sequence] = []
        self.running: list[Sequence] = []
        self.paused: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def placed(self) -> list[Sequence]:
        """Return the sequences that have slots."""
        return [*self.running, *self.prefilling]

    @property
    def has_work(self) -> bool:
        """Return whether a step would do something."""
        return bool(self.running or self.prefilling or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
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

    def prefill_budget(self, share: PrefillShare) -> PrefillBudget:
        """Begin a step's prefill of this much. The sequence that arrived first is placed before any other, none
        overtakes it when there is no space for it, and half of the step is kept for it."""
        first = _earliest([*self.prefilling, *self.waiting])
        admits = first is None or first in self.prefilling or self._place(first)
        first = first if admits else _earliest(self.prefilling)
        return PrefillBudget(share.tokens, -(-share.tokens // 2), share.per_pass, first, admits)

    def admit(self, budget: PrefillBudget) -> Sequence | None:
        """Admission: return the sequence that this step prefills next, placed, or None: that with the fewest tokens
        left, so that a short prompt does not wait for a long one."""
        able = [*self.prefilling, *(self.waiting if budget.admits else ())]
        able = [sequence for sequence in able if budget.share(sequence) > 0]
        chosen = min(able, key=lambda sequence: (sequence.num_tokens_to_prefill, _arrival(sequence)), default=None)
        if chosen is None or chosen in self.prefilling or self._place(chosen):
            return chosen
        budget.admits = False
        return self.admit(budget)

    def _place(self, sequence: Sequence) -> bool:
        """Give a waiting sequence a slot, and blocks for all of its tokens and one more; returns whether there are."""
        need = num_blocks(sequence.num_tokens + 1)
        if len(self.placed) == self.limits.max_num_seqs or not self._cache.fits(need):
            return False
        self.waiting.remove(sequence)
        sequence.slot = self._free_slot()
        self.prefilling.append(sequence)
        self._reserve(sequence, need)
        return True

    def run(self, sequence: Sequence) -> None:
        """Let a sequence whose prompt is prefilled decode from now on."""
        self.prefilling.remove(sequence)
        self._move(sequence, len(self.running))
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
        """Take a sequence's slot and blocks and queue it again; it keeps what it has generated."""
        self.num_preemptions += 1
        self.release(sequence)
        self.waiting.append(sequence)

    @property
    def backlogged(self) -> list[Sequence]:
        """Return the running sequences whose consumers do not keep up."""
        return [sequence for sequence in self.running if sequence.is_backlogged]

    def pause_slow_consumers(self) -> None:
        """Backpressure: take the slots of sequences whose consumers do not keep up, and queue again those that have
        caught up."""
        for sequence in self.backlogged:
            self.release(sequence)
            self.paused.append(sequence)
        self.waiting += [sequence for sequence in self.paused if sequence.has_caught_up]
        self.paused = [sequence for sequence in self.paused if not sequence.has_caught_up]

    # --- slots --------------------------------------------------------------------------------------

    def release(self, sequence: Sequence) -> None:
        """Free a sequence's slot and blocks. The last running sequence moves into the slot of a running one."""
        self._slots.clear(sequence.slot, sequence.num_computed_tokens)
        if sequence in self.prefilling:
            self.prefilling.remove(sequence)
        elif (last := self.running.pop()) is not sequence:
            self.running[sequence.slot] = last
            self._move(last, sequence.slot)
        self._cache.release(sequence.num_blocks)
        sequence.num_blocks = sequence.num_computed_tokens = sequence.num_tokens_to_read = 0
        sequence.cached_blocks, sequence.inputs = [], None

    def _free_slot(self) -> int:
        """Return a slot for a sequence to be prefilled: the one in which it would run, or else the last free one, where
        it is in the way of none that runs earlier."""
        used, next_one = {sequence.slot for sequence in self.prefilling}, len(self.running)
        free = (slot for slot in reversed(range(next_one, self.limits.max_num_seqs)) if slot not in used)
        return next(free) if next_one in used else next_one

    def _move(self, sequence: Sequence, slot: int) -> None:
        """Move a sequence to another slot; one that is being prefilled there gets the slot that it leaves."""
        source, length = sequence.slot, sequence.num_computed_tokens
        if source == slot:
            return
        if other := next((one for one in self.prefilling if one.slot == slot), None):
            self._slots.swap(source, slot, max(length, other.num_computed_tokens))
            other.slot = source
        else:
            self._slots.move(source, slot, length)
            self._slots.clear(source, length)
        sequence.slot = slot

    def _reserve(self, sequence: Sequence, more: int) -> None:
        sequence.num_blocks += more
        self._cache.reserve(more)


def _earliest(sequences: Rows[Sequence]) -> Sequence | None:
    return min(sequences, key=_arrival, default=None)


def _arrival(sequence: Sequence) -> tuple[float, int]:
    return sequence.request.arrival_time, sequence.request.id
