"""Unexpected errors in the log: where each kind happened, at most once a minute, whatever clients send."""

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import LRUCache

from autoglm.common.tracing import RequestIds, belonging_to, current

SECONDS = 60.0  # between two lines about one kind of error
KINDS = 100  # that are told apart; of more, those that were seen last
FRAMES = 20  # of a traceback, the innermost


@dataclass(slots=True)
class _Seen:
    logged: float
    left_out: int = 0


class ErrorLog:
    """Logs errors that requests ran into. Two are of one kind if they have one type and come from one line of code.

    The message of an error is left out, as it may quote what a client sent.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger, self._clock = logger, clock
        self._seen: LRUCache[tuple[type[BaseException], str, int | None], _Seen] = LRUCache(KINDS)

    def error(self, what: str, error: BaseException, ids: RequestIds | None = None) -> None:
        """Log `what` happened, with the error's type and traceback, unless its kind was logged in the last minute. In a
        thread that works for many requests, `ids` tell to which of them it happened."""
        frames = traceback.extract_tb(error.__traceback__, -FRAMES)
        kind = (type(error), frames[-1].filename if frames else "", frames[-1].lineno if frames else None)
        now, seen = self._clock(), self._seen.get(kind)
        if seen is not None and now - seen.logged < SECONDS:
            seen.left_out += 1
            return
        more = f" ({seen.left_out} more since the last line)" if seen and seen.left_out else ""
        self._seen[kind] = _Seen(now)
        stack = "".join(traceback.format_list(frames)).rstrip()
        with belonging_to(ids or current()):
            self._logger.error("%s: %s%s\n%s", what, type(error).__name__, more, stack)
