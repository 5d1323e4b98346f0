"""One deadline per request, spent across the stages.

Between processes a deadline travels as the time that is left, because clocks differ and Ray Serve's gRPC context does
not pass on the caller's deadline.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from google.protobuf.duration_pb2 import Duration

from autoglm.common.errors import DeadlineExceeded

MAX_TIMEOUT = 3600.0  # seconds that an answer may take, unless AUTOGLM_MAX_TIMEOUT sets another number
RESERVE_SECONDS = 30  # for what ends after the answer does: connections, the process


def max_timeout_of(environ: Mapping[str, str]) -> float:
    """Return the longest time that an answer may take, in seconds; raises ValueError if it is not a number."""
    value = environ.get("AUTOGLM_MAX_TIMEOUT", "").strip()
    try:
        return float(value or MAX_TIMEOUT)
    except ValueError:
        raise ValueError("AUTOGLM_MAX_TIMEOUT: give a number of seconds") from None


def grace_seconds(max_timeout: float) -> int:
    """Return how long whatever carries answers waits for those that run before it ends."""
    return math.ceil(max_timeout) + RESERVE_SECONDS


class Timed(Protocol):
    """A request with a `timeout` field."""

    @property
    def timeout(self) -> Duration: ...

    def HasField(self, field_name: Literal["timeout"], /) -> bool: ...


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on this process's monotonic clock, in seconds; None is no deadline."""

    at: float | None = None

    @classmethod
    def after(cls, seconds: float | None) -> "Deadline":
        """Return the deadline `seconds` from now."""
        return cls(None if seconds is None else time.monotonic() + seconds)

    @classmethod
    def of(cls, request: Timed) -> "Deadline":
        """Return the deadline that the `timeout` of a request sets; a request without one has no deadline."""
        return cls.after(request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else None)

    def remaining(self) -> float | None:
        """Return the seconds left; None without a deadline. Raises DeadlineExceeded when it has passed."""
        if self.at is None:
            return None
        left = self.at - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the answer was complete; allow more time")
        return left

    def to_message(self) -> Duration | None:
        """Return the time left as a `timeout` field; raises DeadlineExceeded when the deadline has passed."""
        left = self.remaining()
        return None if left is None else seconds_to_duration(left)


def seconds_to_duration(seconds: float) -> Duration:
    """Return `seconds` as a protobuf Duration."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
