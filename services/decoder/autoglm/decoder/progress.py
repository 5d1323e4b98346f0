"""Whether an engine that has work goes on with it.

The watchdog finds a thread that neither answers nor computes. It cannot see a GPU or a process of vLLM's that hangs
while the thread that waits for it answers or spins, nor a scheduler that runs in circles.
"""

from autoglm.decoder.engine.protocol import Stats

STUCK_CHECKS = 120  # in a row without progress; Serve checks each second, and the default deadline is as long


class ProgressCheck:
    """Compares what an engine has done with what it had done at the last check. Checks are counted, not seconds: a
    machine that was suspended is no engine that hangs."""

    def __init__(self) -> None:
        self._progress, self._checks = 0, 0

    def is_stuck(self, stats: Stats) -> bool:
        """Return whether requests have been active without progress for `STUCK_CHECKS` calls in a row."""
        goes_on = not stats.active or stats.progress != self._progress
        self._progress, self._checks = stats.progress, 0 if goes_on else self._checks + 1
        return self._checks >= STUCK_CHECKS
