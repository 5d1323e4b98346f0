"""How tests wait for what another thread, process or task does: for the thing itself, never for a length of time.

`NET_SECONDS` only ends a test whose condition never comes true. It is far beyond what a busy machine needs, so that no
test depends on the speed of the machine.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Result = TypeVar("Result")

NET_SECONDS = 240.0
POLL_SECONDS = 0.02


def eventually(condition: Callable[[], object], what: str) -> None:
    """Return once `condition` holds; fails the test with `what` when it never does."""
    limit = time.monotonic() + NET_SECONDS
    while not condition():
        assert time.monotonic() < limit, f"it never happened: {what}"
        time.sleep(POLL_SECONDS)


async def eventually_async(condition: Callable[[], Awaitable[object]], what: str) -> None:
    """Return once awaiting `condition` gives something true; fails the test with `what` when it never does."""
    limit = time.monotonic() + NET_SECONDS
    while not await condition():
        assert time.monotonic() < limit, f"it never happened: {what}"
        await asyncio.sleep(POLL_SECONDS)


async def soon(work: Awaitable[Result]) -> Result:
    """Return what `work` returns; fails the test when it never does."""
    return await asyncio.wait_for(work, NET_SECONDS)
