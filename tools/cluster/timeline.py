"""What happened when: the faults one after the other, and what the clients saw of each."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .alerts import firing
from .faults import Disruption
from .load import NO_CONNECTION, Ended
from .parts import Cluster

AT_LEAST, AT_MOST = 10.0, 240.0  # seconds that a fault is looked at after it is undone
IN_A_ROW = 10  # requests that end as they should, after which a fault is over
CLEAR_SECONDS = 240.0  # in which alerts have to clear at the end


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of the run: the fault that began it, when it was undone, and when all was whole again; Unix times.

    `undone` is None if there was nothing to undo, `whole` if it was not whole at the end.
    """

    name: str
    started: float
    undone: float | None
    whole: float | None
    ended: float

    def requests(self, ended: Sequence[Ended]) -> list[Ended]:
        """Return the requests that ended in it."""
        return [each for each in ended if self.started <= each.ended < self.ended]

    def failures(self, ended: Sequence[Ended]) -> list[Ended]:
        """Return those of them that did not end as they should."""
        return [each for each in self.requests(ended) if not each.expected and each.outcome != NO_CONNECTION]

    def last_failure(self, ended: Sequence[Ended]) -> float | None:
        """Return the seconds after which nothing failed any more; None if nothing did."""
        return max((each.ended - self.started for each in self.failures(ended)), default=None)

    def slowest(self, ended: Sequence[Ended]) -> float:
        """Return the seconds that the slowest request took."""
        return max((each.ended - each.started for each in self.requests(ended)), default=0.0)


async def undisturbed(seconds: float) -> Passage:
    """Let the clients ask for a while."""
    started = time.time()
    await asyncio.sleep(seconds)
    return Passage("mixed load", started, None, started, time.time())


async def disrupted(cluster: Cluster, fault: Disruption) -> Passage:
    """Cause a fault, undo it, and wait until all is whole and the clients see nothing of it any more."""
    started, undone = time.time(), None
    undo = await asyncio.to_thread(fault.cause, cluster)
    if undo is not None:
        await asyncio.sleep(fault.hold)
        await asyncio.to_thread(undo)
        undone = time.time()
    whole = await _until(cluster.is_whole, AT_MOST)
    await _until(lambda: in_a_row(cluster.load.ended) >= IN_A_ROW, AT_MOST)
    await asyncio.sleep(max(0.0, (undone or started) + AT_LEAST - time.time()))
    return Passage(fault.name, started, undone, whole, time.time())


async def alerts_cleared() -> Passage:
    """Let the clients ask until no alert fires."""
    started = time.time()
    await _until(lambda: not firing(), CLEAR_SECONDS)
    return Passage("until no alert fires", started, None, started, time.time())


async def _until(condition: Callable[[], bool], seconds: float) -> float | None:
    """Wait until `condition`, asked in a thread, holds; return when, or None if it does not in so many seconds."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if await asyncio.to_thread(condition):
            return time.time()
        await asyncio.sleep(0.5)
    return None


def in_a_row(ended: Sequence[Ended]) -> int:
    """Return how many of the last requests ended as they should."""
    count = 0
    for each in reversed(ended):
        if not each.expected:
            break
        count += 1
    return count


def outcomes(failures: Sequence[Ended]) -> str:
    """Return what clients saw and how often, in words."""
    counts = Counter(each.outcome for each in failures)
    return ", ".join(f"{outcome} × {count}" for outcome, count in counts.most_common()) or "no error"
