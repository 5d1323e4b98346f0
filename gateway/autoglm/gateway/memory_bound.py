"""How much memory a gateway takes at most: docs/operate.md lists the parts, and `autoglm doctor` prints the sum."""

from dataclasses import dataclass

from autoglm.gateway.reader_process import memory_limit
from autoglm.gateway.readers import MAX_READERS
from autoglm.gateway.settings import Settings

# Measured: tests/security/test_memory_without_a_key.py opens such connections.
IDLE_BYTES = 80_000_000  # of a gateway that has answered nothing yet
READER_BYTES = 60_000_000  # of the process that reads large requests, while it has none
CONNECTION_BYTES = 7_000  # of one that is idle
HEADER_BYTES = 60_000  # of a header that has no end, on the HTTP server


@dataclass(frozen=True, slots=True)
class MemoryBound:
    """The bytes that each kind of what a gateway holds can take."""

    idle: int
    in_progress: int
    cached: int
    connections: int
    readers: int

    @property
    def total(self) -> int:
        """The bytes of all of them together."""
        return self.idle + self.in_progress + self.cached + self.connections + self.readers


def memory_bound(settings: Settings) -> MemoryBound:
    """Return the bound that these settings give a gateway."""
    return MemoryBound(
        idle=IDLE_BYTES,
        in_progress=settings.max_bytes_in_progress,
        cached=settings.cache_bytes,
        connections=settings.max_connections * (2 * CONNECTION_BYTES + HEADER_BYTES),
        readers=READER_BYTES + MAX_READERS * memory_limit(settings.max_body_bytes),
    )
