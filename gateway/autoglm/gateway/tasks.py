"""Concurrent work in which the first failure cancels the rest, and work that others should not have to wait for."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from autoglm.common.errors import MeshError

T = TypeVar("T")

OFF_LOOP_BYTES = 8 * 1024  # a request of this size is read in a few milliseconds, whatever is in it


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Return the result of `work` on `size` bytes, done in a thread if they are many: the event loop goes on meanwhile,
    and whoever waits can stop waiting."""
    return await asyncio.to_thread(work) if size > OFF_LOOP_BYTES else work()


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all of `work` at once and return its results in order; the first failure cancels the rest."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(item) for item in work]
    except BaseExceptionGroup as failures:
        raise next((e for e in failures.exceptions if isinstance(e, MeshError)), failures.exceptions[0]) from None
    return [task.result() for task in tasks]


async def merge(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Yield the items of all `streams` as they come; the first failure ends all of them.

    Backpressure: no stream is read more than two items ahead of the consumer.
    """
    queue: asyncio.Queue[T | None] = asyncio.Queue(1)

    async def pump(stream: AsyncGenerator[T, None]) -> None:
        async with aclosing(stream):
            async for item in stream:
                await queue.put(item)

    async def pump_all() -> None:
        failed = None
        try:
            await together([pump(stream) for stream in streams])
        except Exception as error:
            failed = error
        await queue.put(None)
        if failed is not None:
            raise failed

    pumps = asyncio.create_task(pump_all())
    try:
        while (item := await queue.get()) is not None:
            yield item
        await pumps
    finally:
        pumps.cancel()
        await asyncio.gather(pumps, return_exceptions=True)
