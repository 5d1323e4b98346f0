"""One deadline per request, spent across the stages.

Between processes a deadline travels as the time that is left, because clocks differ and Ray Serve's gRPC context does
not pass on the caller's deadline.
"""

import time
from dataclasses import dataclass
from typing import Literal, Protocol

from google.protobuf.duration_pb2 import Duration

from autoglm.common.errors import DeadlineExceeded


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
