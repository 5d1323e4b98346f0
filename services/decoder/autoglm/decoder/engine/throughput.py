"""How fast the engine is going, and what that means for a request that has a deadline."""

import time
from dataclasses import dataclass, field

from autoglm.common.errors import RateLimited

NEW = 0.1  # weight of the newest observation


@dataclass(slots=True)
class Pace:
    """Running means of the seconds that a prompt's token takes to be read and that pass between two answers' ends.

    Both are None until they have been seen: a fresh engine promises nothing and refuses nobody.
    """

    token: float | None = None
    answer: float | None = None
    _ended: float = field(default=0.0)

    def read(self, tokens: int, seconds: float) -> None:
        """Note that `tokens` of prompts took `seconds`, decoding beside them included."""
        self.token = _mean(self.token, seconds / tokens)

    def end(self, busy: bool) -> None:
        """Note that an answer ended; `busy` says whether every place was taken, for else the gap tells nothing."""
        now = time.monotonic()
        if busy and self._ended:
            self.answer = _mean(self.answer, now - self._ended)
        self._ended = now

    def wait(self, tokens: int, answers: int) -> float:
        """Return the seconds until a first token, with `tokens` to read up to it and `answers` to end before."""
        return max(tokens * (self.token or 0.0), answers * (self.answer or 0.0))

    def admit(self, tokens: int, answers: int, within: float | None) -> None:
        """Raise RateLimited when `wait` is longer than `within` seconds."""
        wait = self.wait(tokens, answers)
        if within is not None and wait > within:
            raise RateLimited(
                f"the answer could not begin before the deadline: {wait:.1f} s of work are queued, {within:.1f} s "
                "are left; try again later or allow more time",
                retry_after=wait - within,
            )


def _mean(old: float | None, new: float) -> float:
    return new if old is None else (1 - NEW) * old + NEW * new
