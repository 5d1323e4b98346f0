"""The end of the drain: what is still running then fails with an error that its client understands."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import TypeVar

from autoglm.common.errors import UpstreamUnavailable

T = TypeVar("T")

LAST_SECONDS = 5.0  # after the drain, for the errors to reach the clients


class Drain:
    """Knows what requests are waiting for, so that `end` can stop all of them."""

    def __init__(self) -> None:
        self._ended = False
        self._timeouts: set[asyncio.Timeout] = set()

    def end(self) -> None:
        """Stop all that runs, and whatever begins from now on."""
        self._ended = True
        now = asyncio.get_running_loop().time()
        for timeout in self._timeouts:
            if not timeout.expired():
                timeout.reschedule(now)

    async def run(self, work: Awaitable[T]) -> T:
        """Return what `work` returns; raises UpstreamUnavailable when the drain ends before that."""
        timeout = asyncio.timeout(0 if self._ended else None)
        self._timeouts.add(timeout)
        try:
            async with timeout:
                found = await work
        except TimeoutError:
            if timeout.expired():
                raise UpstreamUnavailable("this gateway is shutting down; send the request again") from None
            raise
        finally:
            self._timeouts.discard(timeout)
        return found

    async def until_end(self, steps: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Yield `steps`; raises UpstreamUnavailable when the drain ends.

        Only waiting for a step is interrupted, never the consumer: what it has begun to send stays whole.
        """
        while True:
            try:
                step = await self.run(anext(steps))
            except StopAsyncIteration:
                return
            yield step
