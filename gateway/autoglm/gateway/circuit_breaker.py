"""A circuit breaker: what fails again and again is left alone for a while, and then tried by one caller."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class CircuitBreaker:
    """Closed, it lets every call through. `threshold` failures in a row open it: for `pause` seconds no call goes
    through. Then it is half-open: one call goes through, and its outcome closes the breaker or opens it again.
    """

    def __init__(self, threshold: int, pause: float) -> None:
        self._threshold, self._pause = threshold, pause
        self._failures = 0
        self._resume = 0.0
        self._probing = False

    @property
    def closed(self) -> bool:
        """Whether every call goes through."""
        return self._failures < self._threshold

    @contextmanager
    def admit(self) -> Iterator[bool]:
        """Yield whether this call may go through. If so, report `succeed` or `fail` after it, unless cancelled."""
        if self.closed:
            yield True
        elif self._probing or time.monotonic() < self._resume:
            yield False
        else:
            self._probing = True
            try:
                yield True
            finally:
                self._probing = False

    def succeed(self) -> None:
        """Record an answer."""
        self._failures = 0

    def fail(self) -> None:
        """Record that there was no answer."""
        self._failures += 1
        self._resume = time.monotonic() + self._pause
