"""What the servicer needs from an engine; `engine` in the Serve config chooses the embedded one or vLLM."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from autoglm.decoder.engine.request import Request, RequestOutput

Consumer = Callable[[RequestOutput], None]


@dataclass(frozen=True, slots=True)
class Stats:
    """How busy an engine is, and what it has done: tokens of prompts that were prefilled and tokens generated, prompt
    tokens looked for in the prefix cache and found there, and sequences preempted because the cache was full.

    `active` requests are those that do not wait for their consumers: while there are any, `progress` grows with
    whatever is computed. `last_token` is when the last token came, in seconds of Unix time, 0 before the first.
    """

    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    active: int = 0
    progress: int = 0
    last_token: float = 0.0


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step: how many sequences and tokens it computed, and how long it took, if that is known."""

    num_sequences: int
    num_tokens: int
    seconds: float | None = None


MAX_STEP_RECORDS = 10_000  # that an engine keeps if nobody asks for them


def taken(records: deque[StepRecord]) -> list[StepRecord]:
    """Return all of `records`, to which another thread may be adding, and remove them."""
    return [records.popleft() for _ in range(len(records))]


class Engine(Protocol):
    """Continuous batching over one decoder. Everything may be called from any thread."""

    name: str  # `engine` in the Serve config

    def submit(self, request: Request, consumer: Consumer, within: float | None = None) -> None:
        """Queue a request; `consumer` gets its outputs, the last with `finish`, from a thread of the engine's.

        Raises RateLimited if the estimated time to first token exceeds `within` seconds (load shedding),
        UpstreamUnavailable when the engine has stopped.
        """

    def abort(self, request_id: int) -> None:
        """Drop a request in whatever state it is; nothing more reaches its consumer after the current step."""

    def acknowledge(self, request_id: int, num_outputs: int) -> None:
        """Report that the consumer has read `num_outputs` so far, for requests with a `max_backlog` (backpressure)."""

    def stats(self) -> Stats:
        """Return how busy the engine is."""

    def steps(self) -> list[StepRecord]:
        """Return the steps since the last call."""

    def alive(self) -> bool:
        """Return whether it can still answer."""

    def call(self, function: Callable[[], None]) -> None:
        """Have the engine's thread call `function` between two steps; returns at once, even if that thread hangs."""

    def close(self) -> None:
        """Stop; what runs is given up."""
