"""Dynamic batching: requests that arrive at about the same time share one forward pass.

The pass runs in its own thread, so that the event loop can accept requests meanwhile; these form the next batch. A
request that was cancelled before its batch starts is dropped.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")
Outcome_co = TypeVar("Outcome_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Batched(Generic[Outcome_co]):
    """The result of one request: its value, the seconds that it waited and computed, and the size of its batch."""

    value: Outcome_co
    queue: float
    compute: float
    size: int


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item, Value]):
    item: Item
    since: float
    future: "asyncio.Future[Batched[Value]]"


class Batcher(Generic[Item, Value]):
    """Calls `run` with up to `limit` items at a time, one call after the other, outside the event loop.

    Args:
        run: Returns one value for each item, in order; an exception fails the whole batch.
        limit: Maximum number of items in a batch.
        linger: Seconds that an incomplete batch waits for more items.
        prepare: Is called first in the thread of the passes.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Value]],
        *,
        limit: int,
        linger: float,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._run = run
        self._limit = limit
        self._linger = linger
        self._waiting: deque[_Waiting[Item, Value]] = deque()
        self._thread = ThreadPoolExecutor(1, "forward", prepare)
        self._task: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Batched[Value]:
        """Return the value of `item`; an item that is cancelled before its batch starts is not computed."""
        future: asyncio.Future[Batched[Value]] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(item, time.monotonic(), future)
        self._waiting.append(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await future

    def call(self, function: Callable[[], None]) -> None:
        """Have the thread of the passes call `function` after the current pass."""
        self._thread.submit(function)

    async def _drain(self) -> None:
        while self._waiting:
            if len(self._waiting) < self._limit:
                await asyncio.sleep(self._linger)
            if batch := self._take():
                await self._compute(batch)

    def _take(self) -> list[_Waiting[Item, Value]]:
        batch: list[_Waiting[Item, Value]] = []
        while self._waiting and len(batch) < self._limit:
            waiting = self._waiting.popleft()
            if not waiting.future.done():
                batch.append(waiting)
        return batch

    async def _compute(self, batch: list[_Waiting[Item, Value]]) -> None:
        started = time.monotonic()
        items = [waiting.item for waiting in batch]
        try:
            values = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, items)
        except Exception as error:
            for waiting in batch:
                _settle(waiting.future, error)
            return
        compute = time.monotonic() - started
        for waiting, value in zip(batch, values, strict=True):
            _settle(waiting.future, Batched(value, started - waiting.since, compute, len(batch)))


def _settle(future: "asyncio.Future[Batched[Value]]", outcome: Batched[Value] | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
