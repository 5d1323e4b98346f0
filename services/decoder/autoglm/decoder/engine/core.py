"""The embedded engine: one thread, one loop. Every step reads a bounded piece of the waiting prompts and then decodes
one token for all running sequences together.

A sequence waits, is read into a slot, runs, and ends. It goes back to waiting, with what it generated, when the cache
is full and it came last, or when nobody takes its tokens.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor

from autoglm.common.errors import UpstreamUnavailable
from autoglm.decoder.engine.prefix_keys import BLOCK, block_keys
from autoglm.decoder.engine.protocol import Stats
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.sampling import choose, note
from autoglm.decoder.engine.sequence import Chosen, Sequence
from autoglm.decoder.engine.slots import Cache, blocks
from autoglm.decoder.engine.throughput import Pace

logger = logging.getLogger("autoglm.decoder")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine may take: sequences at a time, prompt tokens read in a step, blocks of cache, and whether
    prefixes are kept. A sequence of the model's full context must fit in the cache."""

    sequences: int
    step_tokens: int
    blocks: int
    keep_prefixes: bool = True


class EmbeddedEngine:
    """The engine that needs nothing but torch; see Engine for what it promises."""

    def __init__(self, runner: Runner, limits: Limits, stops: Collection[int]) -> None:
        self.runner, self._limits, self._stops = runner, limits, frozenset(stops)
        self._cache = Cache(runner.slots, limits.blocks, limits.keep_prefixes)
        self._pace = Pace()
        self._waiting: deque[Sequence] = deque()
        self._reading: Sequence | None = None  # in the slot behind those that run
        self._running: list[Sequence] = []  # sequence i in slot i
        self._parked: list[Sequence] = []
        self._queries = self._hits = self._preemptions = 0
        self._skipped = 0  # prompt tokens that this step found in the cache
        self._changed = threading.Condition()
        self._awake = self._closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    # --- for everyone -------------------------------------------------------------------------------

    def submit(self, sequence: Sequence, within: float | None = None) -> None:
        """Queue a sequence; raises RateLimited when its first token is not to be expected `within` so many seconds,
        UpstreamUnavailable when the engine has stopped."""
        with self._changed:
            if self._closed:
                raise _stopped()
            ahead = [*self._waiting, *([self._reading] if self._reading else []), sequence]
            tokens = sum(one.known - one.length for one in ahead if not one.aborted)
            crowd = len(self._running) + len(ahead) - self._limits.sequences
            self._pace.admit(tokens, max(0, crowd), within)
            self._waiting.append(sequence)
            self._wake()

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence wherever it is; nothing more reaches its sink after the current step."""
        with self._changed:
            sequence.aborted = True
            self._wake()

    def wake(self) -> None:
        """Look again: a consumer that was full has room."""
        with self._changed:
            self._wake()

    def stats(self) -> Stats:
        """Return how busy the engine is."""
        with self._changed:
            waiting = sum(not sequence.aborted for sequence in (*self._waiting, *self._parked))
            running = sum(not sequence.aborted for sequence in self._placed())
            return Stats(running, waiting, self._cache.usage, self._queries, self._hits, self._preemptions)

    def alive(self) -> bool:
        """Return whether the loop still turns."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop after the current step."""
        with self._changed:
            self._closed = True
            self._wake()
        self._thread.join()

    def _wake(self) -> None:
        self._awake = True
        self._changed.notify()

    # --- the loop -----------------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while self._wait():
                self._step()
        except Exception:  # not even a failed sequence could be laid aside: a device that is gone, say
            logger.exception("the engine has stopped")
            self._give_up()

    def _give_up(self) -> None:
        with self._changed:
            self._closed = True
            left = [*self._placed(), *self._waiting, *self._parked]
        for sequence in left:
            if not sequence.aborted:
                sequence.end(_stopped())

    def _wait(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._awake or self._busy())
            self._awake = False
            return not self._closed

    def _busy(self) -> bool:
        return bool(self._running or self._reading or self._waiting)

    def _step(self) -> None:
        self._drop_aborted()
        self._park()
        started, self._skipped = time.monotonic(), 0
        tokens = self._read()
        self._grow()
        self._decode()
        if tokens:  # what is found in the cache counts, so that who waits is expected to find as much
            self._pace.read(tokens + self._skipped, time.monotonic() - started)

    def _drop_aborted(self) -> None:
        with self._changed:
            self._waiting = deque(sequence for sequence in self._waiting if not sequence.aborted)
            self._parked = [sequence for sequence in self._parked if not sequence.aborted]
        for sequence in [sequence for sequence in self._placed() if sequence.aborted]:
            self._release(sequence)

    def _park(self) -> None:
        """Take the slots of those whose consumers do not keep up, and queue those again that have caught up."""
        for sequence in [sequence for sequence in self._running if sequence.full()]:
            self._release(sequence)
            self._parked.append(sequence)
        with self._changed:
            self._waiting.extendleft(sequence for sequence in self._parked if not sequence.full())
            self._parked = [sequence for sequence in self._parked if sequence not in self._waiting]

    def _placed(self) -> list[Sequence]:
        """Return the sequences that have slots, in the order of these."""
        return [*self._running, *([self._reading] if self._reading else [])]

    # --- prompts ------------------------------------------------------------------------------------

    def _read(self) -> int:
        """Read prompts, one after another, as far as a step goes; return how many tokens."""
        left = self._limits.step_tokens
        while left and (sequence := self._reading or self._admit()):
            tokens = min(left, sequence.known - sequence.length)
            left -= tokens
            try:
                self._read_some(sequence, tokens)
            except Exception as error:
                self._fail(sequence, error)
        return self._limits.step_tokens - left

    def _admit(self) -> Sequence | None:
        """Give the first of those that wait a slot, when one is free and the cache has room for it."""
        with self._changed:
            if not self._waiting or len(self._running) == self._limits.sequences:
                return None
            need = blocks(self._waiting[0].known + 1)
            if not self._cache.fits(need):
                return None
            self._reading = sequence = self._waiting.popleft()
        sequence.blocks = need
        self._cache.hold(need)
        sequence.started = sequence.started or time.monotonic()
        return sequence

    def _read_some(self, sequence: Sequence, tokens: int) -> None:
        if sequence.inputs is None:
            self._begin(sequence)
            tokens = min(tokens, sequence.known - sequence.length)
        slot, before = len(self._running), sequence.length
        logits = self.runner.read(sequence, slot, tokens)
        self._keep(sequence, slot, before // BLOCK)
        if sequence.length == sequence.known:
            with self._changed:
                self._reading = None
                self._running.append(sequence)
            sequence.inputs = None
            if not sequence.output:
                self._take([sequence], logits)

    def _begin(self, sequence: Sequence) -> None:
        """Start with what the prefix cache knows; at least one token is left to be read."""
        sequence.keys = block_keys(sequence.prompt, sequence.output[:-1], sequence.origin)
        found = self._cache.match(sequence.keys[: (sequence.known - 1) // BLOCK])
        self.runner.slots.put(len(self._running), found)
        sequence.length = len(found) * BLOCK
        self._skipped += sequence.length
        if not sequence.output:
            sequence.cached = sequence.length
            self._queries += sequence.known
            self._hits += sequence.cached
        self.runner.prepare(sequence)

    def _keep(self, sequence: Sequence, slot: int, first: int) -> None:
        for number in range(first, min(sequence.length // BLOCK, len(sequence.keys))):
            self._cache.keep(sequence.keys[number], slot, number)

    # --- tokens -------------------------------------------------------------------------------------

    def _grow(self) -> None:
        """See to it that every running sequence has room for its next token; those that came last give theirs up."""
        for sequence in sorted(self._running, key=lambda one: one.submitted):
            if not sequence.blocks:  # it gave its own up
                continue
            more = blocks(sequence.length + 1) - sequence.blocks
            while not self._cache.fits(more):
                self._preempt(max(self._placed(), key=lambda one: one.submitted))
                if not sequence.blocks:
                    break
            else:
                sequence.blocks += more
                self._cache.hold(more)

    def _preempt(self, sequence: Sequence) -> None:
        self._preemptions += 1
        self._release(sequence)
        with self._changed:
            self._waiting.appendleft(sequence)

    def _decode(self) -> None:
        for sequences, outcome in list(self._outcomes(list(self._running), 0)):
            if isinstance(outcome, Exception):
                self._fail(sequences[0], outcome)
                continue
            for sequence in sequences:
                sequence.length += 1
            self._take(sequences, outcome)

    def _outcomes(self, batch: list[Sequence], first: int) -> Iterator[tuple[list[Sequence], Tensor | Exception]]:
        """Yield logits for `batch`, which begins in slot `first`; what fails together is tried in halves, so that in
        the end only those fail that fail alone."""
        if not batch:
            return
        try:
            yield batch, self.runner.decode(batch, first)
        except Exception as error:
            if len(batch) == 1:
                yield batch, error
                return
            logger.warning("a step for %d sequences failed, trying halves: %s", len(batch), type(error).__name__)
            half = len(batch) // 2
            yield from self._outcomes(batch[:half], first)
            yield from self._outcomes(batch[half:], first + half)

    def _take(self, sequences: list[Sequence], logits: Tensor) -> None:
        for sequence, chosen in zip(sequences, choose(logits, sequences), strict=True):
            try:
                if isinstance(chosen, Exception):
                    raise chosen
                self._give(sequence, chosen)
            except Exception as error:
                self._fail(sequence, error)

    def _give(self, sequence: Sequence, chosen: Chosen) -> None:
        sequence.take(chosen.token_id)
        note(sequence, chosen.token_id)
        if reason := sequence.tell(chosen, self._stops):
            self._finish(sequence, reason)

    # --- ends ---------------------------------------------------------------------------------------

    def _finish(self, sequence: Sequence, reason: str) -> None:
        """End a running sequence; what follows in its conversation will begin with this answer."""
        sequence.keys = block_keys(sequence.prompt, sequence.output[:-1], sequence.origin)
        self._keep(sequence, self._running.index(sequence), 0)
        self._pace.end(busy=len(self._running) == self._limits.sequences)
        self._end(sequence, reason)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        logger.error("a sequence failed: %s", type(error).__name__, exc_info=error)
        if sequence in self._placed():
            self._end(sequence, error)

    def _end(self, sequence: Sequence, reason: str | Exception) -> None:
        self._release(sequence)
        sequence.end(reason)

    def _release(self, sequence: Sequence) -> None:
        """Free a slot; the last running sequence moves into it, and the one that is being read follows."""
        slot = self._placed().index(sequence)
        self.runner.slots.clear(slot, sequence.length)
        with self._changed:
            if sequence is self._reading:
                self._reading = None
            else:
                last = self._running.pop()
                if last is not sequence:
                    self._running[slot] = last
                    self._shift(last, len(self._running), slot)
                if self._reading is not None:
                    self._shift(self._reading, len(self._running) + 1, len(self._running))
        self._cache.hold(-sequence.blocks)
        sequence.blocks = sequence.length = 0
        sequence.inputs = None

    def _shift(self, sequence: Sequence, source: int, target: int) -> None:
        self.runner.slots.move(source, target, sequence.length)
        self.runner.slots.clear(source, sequence.length)


def _stopped() -> UpstreamUnavailable:
    return UpstreamUnavailable("the decoder's engine has stopped and is being started again; try again")
