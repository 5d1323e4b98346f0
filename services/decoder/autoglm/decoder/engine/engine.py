"""The embedded engine: one thread, one loop; every step admits at most one prompt and then decodes
one token for all running sequences together."""

import logging
import threading
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.sampling import choose, note
from autoglm.decoder.engine.sequence import Chosen, Finished, Sequence

logger = logging.getLogger("autoglm.decoder")


@dataclass(frozen=True, slots=True)
class Stats:
    """How busy the engine is."""

    running: int
    waiting: int


class Engine:
    """Continuous batching over `max_num_seqs` slots. `submit` and `abort` may be called from any thread."""

    def __init__(self, runner: Runner, max_num_seqs: int, stops: Collection[int]) -> None:
        self._runner, self._max_num_seqs, self._stops = runner, max_num_seqs, frozenset(stops)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; its sink gets every token and then one Finished, from the engine's thread."""
        with self._changed:
            self._waiting.append(sequence)
            self._changed.notify()

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence wherever it is; nothing more reaches its sink after the current step."""
        with self._changed:
            sequence.aborted = True
            self._changed.notify()

    def stats(self) -> Stats:
        """Return how many sequences run and wait."""
        with self._changed:
            waiting = sum(not sequence.aborted for sequence in self._waiting)
            return Stats(sum(not sequence.aborted for sequence in self._running), waiting)

    def alive(self) -> bool:
        """Return whether the loop still turns."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop after the current step."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while self._wait():
            self._step()

    def _wait(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self._closed)
            return not self._closed

    def _step(self) -> None:
        self._drop_aborted()
        if (sequence := self._admit()) is not None:
            self._prefill(sequence)
        if self._running:
            self._decode()

    def _drop_aborted(self) -> None:
        with self._changed:
            self._waiting = deque(sequence for sequence in self._waiting if not sequence.aborted)
        for sequence in [sequence for sequence in self._running if sequence.aborted]:
            self._release(sequence)

    def _admit(self) -> Sequence | None:
        with self._changed:
            return self._waiting.popleft() if self._waiting and len(self._running) < self._max_num_seqs else None

    def _prefill(self, sequence: Sequence) -> None:
        sequence.started = time.monotonic()
        with self._changed:
            self._running.append(sequence)
        try:
            logits = self._runner.prefill(sequence, len(self._running) - 1)
            self._take(sequence, choose(logits[0], sequence))
        except Exception as error:
            self._fail(sequence, error)

    def _decode(self) -> None:
        batch = list(self._running)
        try:
            logits = self._runner.decode(batch)
        except Exception as error:
            for sequence in batch:
                self._fail(sequence, error)
            return
        for row, sequence in enumerate(batch):
            try:
                self._take(sequence, choose(logits[row], sequence))
            except Exception as error:
                self._fail(sequence, error)

    def _take(self, sequence: Sequence, chosen: Chosen) -> None:
        if not sequence.output:
            sequence.first_token = time.monotonic()
        sequence.output.append(chosen.token_id)
        note(sequence, chosen.token_id)
        if chosen.token_id in self._stops:
            self._finish(sequence, "stop")
            return
        sequence.sink(chosen)
        if len(sequence.output) >= sequence.max_tokens:
            self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, reason: str | Exception) -> None:
        self._release(sequence)
        sequence.sink(Finished(reason))

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        logger.error("a sequence failed: %s", type(error).__name__, exc_info=error)
        if sequence in self._running:
            self._finish(sequence, error)

    def _release(self, sequence: Sequence) -> None:
        """Free a slot; the last running sequence moves into it."""
        with self._changed:
            slot, last = self._running.index(sequence), self._running[-1]
            if last is not sequence:
                self._runner.cache.move(len(self._running) - 1, slot, last.length)
                self._running[slot] = last
            self._running.pop()
