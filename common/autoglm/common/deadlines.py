"""One deadline per request, spent across the stages.

Between processes a deadline travels as what is left of it, because clocks differ and Ray Serve's
gRPC context does not pass the caller's on.
"""

import time
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from autoglm.common.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on this process's monotonic clock, in seconds; None never comes."""

    at: float | None = None

    @classmethod
    def after(cls, seconds: float | None) -> "Deadline":
        """Return the deadline `seconds` from now."""
        return cls(None if seconds is None else time.monotonic() + seconds)

    @classmethod
    def of(cls, message: Duration | None) -> "Deadline":
        """Return the deadline that a `timeout` field of a request sets; an absent field sets none."""
        return cls.after(None if message is None else message.ToNanoseconds() / 1e9)

    def remaining(self) -> float | None:
        """Return the seconds left; raises DeadlineExceeded when none are."""
        if self.at is None:
            return None
        left = self.at - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the answer was complete; allow more time")
        return left

    def to_message(self) -> Duration | None:
        """Return the time left as a `timeout` field; raises DeadlineExceeded when none is."""
        left = self.remaining()
        return None if left is None else seconds_to_duration(left)


def seconds_to_duration(seconds: float) -> Duration:
    """Return `seconds` as a protobuf Duration."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
