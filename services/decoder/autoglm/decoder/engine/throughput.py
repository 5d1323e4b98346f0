"""How fast the engine is, and which requests it refuses because of that: load shedding."""

import time
from dataclasses import dataclass, field

from autoglm.common.errors import RateLimited

NEW = 0.1  # weight of the newest observation


@dataclass(slots=True)
class ThroughputEstimate:
    """Running means of the seconds that the prefill of one token takes, and that pass between the ends of two answers.

    Both are None until they have been observed: a fresh engine promises nothing and refuses no request.
    """

    token: float | None = None
    answer: float | None = None
    _finished: float = field(default=0.0)

    def prefilled(self, tokens: int, seconds: float) -> None:
        """Record that the prefill of `tokens` tokens took `seconds`, the decode steps in between included."""
        self.token = _mean(self.token, seconds / tokens)

    def finished(self, busy: bool) -> None:
        """Record that an answer ended; `busy` says that no slot was free, as otherwise the time since the last end
        says nothing about how fast the engine is."""
        now = time.monotonic()
        if busy and self._finished:
            self.answer = _mean(self.answer, now - self._finished)
        self._finished = now

    def time_to_first_token(self, tokens: int, answers: int) -> float:
        """Return the expected seconds until a first token, with `tokens` to prefill and `answers` to end before it."""
        return max(tokens * (self.token or 0.0), answers * (self.answer or 0.0))

    def shed_load(self, tokens: int, answers: int, within: float | None) -> None:
        """Raise RateLimited if the estimated time to first token exceeds `within` seconds; see `time_to_first_token`.

        A request that cannot start before its deadline is refused while it has cost nothing.
        """
        wait = self.time_to_first_token(tokens, answers)
        if within is not None and wait > within:
            raise RateLimited(
                f"the answer could not begin before the deadline: {wait:.1f} s of work are queued, {within:.1f} s "
                "are left; try again later or allow more time",
                retry_after=wait - within,
            )


def _mean(old: float | None, new: float) -> float:
    return new if old is None else (1 - NEW) * old + NEW * new
