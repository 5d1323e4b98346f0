"""Ends this process when one of its threads hangs, so that its supervisor (Serve, `autoglm serve`) starts another.

A thread hangs when it neither answers nor computes. The watchdog asks each thread in turn to call a function, and reads
the CPU time of those that have not done so yet: a long forward pass, or a machine with too much to do, is progress. It
counts its own checks, not seconds, so that a process that was suspended as a whole is not taken for one that hangs.
"""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping

logger = logging.getLogger("autoglm.watchdog")

CHECK_SECONDS = 1.0
HUNG_CHECKS = 6  # in a row without an answer and without progress
BUSY_CHECKS = 600  # in a row without an answer: whatever this computes, nobody waits for it any more
PROGRESS_SECONDS = 0.001  # of CPU time; a thread that waits uses none
LOG_SECONDS = 5.0

Answer = Callable[[], None]
Ask = Callable[[Answer], object]
"""Has a thread call `Answer` at its next turn, like `loop.call_soon_threadsafe`; itself it must not wait."""


class WatchedThread:
    """A thread that has to answer `ask`."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._answered = True
        self._clock = time.CLOCK_PROCESS_CPUTIME_ID  # until the first answer tells which thread it is
        self._cpu = 0.0
        self._silent = self._idle = 0

    def is_hung(self) -> bool:
        """Return whether the thread has hung for too many checks; asks it again once it has answered."""
        if self._answered:
            self._answered, self._silent, self._idle = False, 0, 0
            self._ask(self._answer)
            return False
        self._silent += 1
        self._idle = 0 if self._has_computed() else self._idle + 1
        return self._idle >= HUNG_CHECKS or self._silent >= BUSY_CHECKS

    def _answer(self) -> None:
        self._clock = _thread_clock()
        self._cpu = time.clock_gettime(self._clock)
        self._answered = True

    def _has_computed(self) -> bool:
        """Return whether the thread has used CPU time since this was last true."""
        try:
            used = time.clock_gettime(self._clock)
        except OSError:  # the thread has ended
            return False
        if progress := used - self._cpu >= PROGRESS_SECONDS:
            self._cpu = used
        return progress


def _thread_clock() -> int:
    """Return the id of the CPU clock of the calling thread; of the whole process on systems that give no other."""
    if hasattr(time, "pthread_getcpuclockid"):
        return time.pthread_getcpuclockid(threading.get_ident())
    return time.CLOCK_PROCESS_CPUTIME_ID


def watch(threads: Mapping[str, Ask]) -> threading.Thread:
    """Check `threads`, by name, until one hangs, and then end the process. Returns the thread that checks."""
    watched = {name: WatchedThread(ask) for name, ask in threads.items()}
    watchdog = threading.Thread(target=_run, args=(watched,), name="watchdog", daemon=True)
    watchdog.start()
    return watchdog


def _run(watched: Mapping[str, WatchedThread]) -> None:
    while True:
        time.sleep(CHECK_SECONDS)
        try:
            hung = [name for name, thread in watched.items() if thread.is_hung()]
        except RuntimeError:  # an event loop or executor was closed: the process is ending
            return
        if hung:
            _end_process(hung[0])


def _end_process(name: str) -> None:
    """Log where every thread is, and end this process, even if the logger is what hangs."""
    limit = threading.Timer(LOG_SECONDS, os._exit, (1,))
    limit.daemon = True
    limit.start()
    logger.critical("the %s thread hangs: ending this process, so that another is started", name)
    faulthandler.dump_traceback(2)  # sys.stderr may be Serve's logger
    os._exit(1)
