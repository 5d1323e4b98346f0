"""What the servicer asks of an engine. The embedded one and vLLM's are chosen by `engine` in the Serve config."""

from dataclasses import dataclass
from typing import Protocol

from autoglm.decoder.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Stats:
    """How busy an engine is, and what it has done: prompt tokens asked of the prefix cache and found there, and
    sequences put back because the cache was full."""

    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0


class Engine(Protocol):
    """Continuous batching over one decoder. Everything may be called from any thread."""

    def submit(self, sequence: Sequence, within: float | None = None) -> None:
        """Queue a sequence; its sink gets every token and then one Finished, from a thread of the engine's.

        Raises RateLimited when its first token cannot be expected `within` so many seconds, UpstreamUnavailable when
        the engine has stopped.
        """

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence wherever it is; nothing more reaches its sink after the current step."""

    def wake(self) -> None:
        """Look again: a consumer that was full has room."""

    def stats(self) -> Stats:
        """Return how busy the engine is."""

    def alive(self) -> bool:
        """Return whether it can answer still."""

    def close(self) -> None:
        """Stop; what runs is given up."""
