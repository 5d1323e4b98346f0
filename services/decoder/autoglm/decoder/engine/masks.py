"""Masks of tokens, computed in a thread that the engine can leave behind.

llguidance bounds the fuel of its lexer for each mask, but not the work of its parser: one mask of an ambiguous grammar
takes 5 s. It releases the GIL meanwhile, so the engine goes on without the answer that waits for it.
"""

import os
import threading
import time
import weakref
from concurrent.futures import Future
from queue import SimpleQueue

from llguidance import LLMatcher

MASK_SECONDS = 0.05  # of CPU; formats of agents need up to 7 ms with a vocabulary of 128 000
_NICENESS = 19  # of what is left behind


class SlowMask(Exception):
    """A mask takes too long; its matcher is still at work and must not be used again."""


class MaskThread:
    """Computes one mask after another for the engine's thread."""

    def __init__(self) -> None:
        self._left: list[threading.Thread] = []
        self._start()

    @property
    def num_left(self) -> int:
        """How many masks are still being computed that nobody waits for."""
        self._left = [thread for thread in self._left if thread.is_alive()]
        return len(self._left)

    def compute(self, matcher: LLMatcher) -> bytes:
        """Return a byte for each token, 0 for what cannot come next. Raises SlowMask after MASK_SECONDS of CPU time, so
        that it makes no difference how busy the machine is."""
        mask, started = Future[bytes](), self._cpu_seconds()
        self._jobs.put((matcher, mask))
        while True:
            try:
                return mask.result(MASK_SECONDS)
            except TimeoutError:
                if self._cpu_seconds() - started >= MASK_SECONDS:
                    self._leave()
                    raise SlowMask from None

    def _start(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name="masks", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, self._jobs.put, None)

    def _leave(self) -> None:
        """Let the thread end after what it computes, in time that nobody else needs, and go on with another."""
        if self._thread.native_id is not None:
            os.setpriority(os.PRIO_PROCESS, self._thread.native_id, _NICENESS)
        self._left.append(self._thread)
        self._end()
        self._start()

    def _cpu_seconds(self) -> float:
        assert self._thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))


_Job = tuple[LLMatcher, Future[bytes]]


def _work(jobs: "SimpleQueue[_Job | None]") -> None:
    while job := jobs.get():
        matcher, mask = job
        try:
            mask.set_result(matcher.compute_logit_bias())
        except BaseException as error:
            mask.set_exception(error)
        del job, matcher, mask  # the next one may be long in coming
