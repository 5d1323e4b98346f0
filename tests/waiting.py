"""How tests wait for what another thread, process or task does: for the thing itself, never for a length of time.

`NET_SECONDS` only ends a test whose condition never comes true. It is far beyond what a busy machine needs, so that no
test depends on the speed of the machine.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx

Result = TypeVar("Result")

NET_SECONDS = 240.0
POLL_SECONDS = 0.02


def eventually(condition: Callable[[], object], what: str) -> None:
    """Return once `condition` holds; fails the test with `what` when it never does."""
    assert comes_true(condition, NET_SECONDS), f"it never happened: {what}"


def comes_true(condition: Callable[[], object], seconds: float) -> bool:
    """Return whether `condition` holds at some time within so many seconds, as soon as it does."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= limit:
            return False
        time.sleep(POLL_SECONDS)
    return True


def is_answered(url: str) -> bool:
    """Return whether `url` is answered with 200, as a probe without a token asks for it; False if nobody listens."""
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


async def eventually_async(condition: Callable[[], Awaitable[object]], what: str) -> None:
    """Return once awaiting `condition` gives something true; fails the test with `what` when it never does."""
    limit = time.monotonic() + NET_SECONDS
    while not await condition():
        assert time.monotonic() < limit, f"it never happened: {what}"
        await asyncio.sleep(POLL_SECONDS)


async def turns(count: int = 1) -> None:
    """Let all that can run on the event loop run until it waits, so many times; no time passes."""
    for _ in range(count):
        await asyncio.sleep(0)


async def soon(work: Awaitable[Result]) -> Result:
    """Return what `work` returns; fails the test when it never does."""
    return await asyncio.wait_for(work, NET_SECONDS)


@contextmanager
def at_the_same_time(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `work` in a thread of its own during the block. Its event is set when the block ends, which waits for it."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
