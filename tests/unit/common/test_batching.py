"""Batches form from what is there, and work that nobody waits for is never started."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from autoglm.common import batching
from autoglm.common.batching import Batcher

from ...waiting import NET_SECONDS, turns


class Doubler:
    """Doubles numbers; holds each call until `gate` is set and remembers the batches."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.started = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.started.set()
        self.gate.wait(NET_SECONDS)
        if 13 in items:
            raise ValueError("unlucky")
        return [2 * item for item in items]


class Clock:
    """Stands for the module `time`: seconds pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


async def test_what_arrives_during_a_pass_forms_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, double = Clock(), Doubler()
    monkeypatch.setattr(batching, "time", clock)
    batcher = Batcher(double, limit=3, linger=0)
    first = asyncio.create_task(batcher.submit(1))
    await asyncio.to_thread(double.started.wait, NET_SECONDS)
    rest = [asyncio.create_task(batcher.submit(item)) for item in (2, 3, 4, 5)]
    await turns()  # until they are in the queue
    clock.now += 7
    double.gate.set()
    results = await asyncio.gather(first, *rest)
    assert [result.value for result in results] == [2, 4, 6, 8, 10]
    assert double.batches == [[1], [2, 3, 4], [5]]
    assert [result.size for result in results] == [1, 3, 3, 3, 1]
    assert [result.queue for result in results] == [0, 7, 7, 7, 7]
    assert [result.compute for result in results] == [7, 0, 0, 0, 0]


async def test_a_cancelled_request_is_dropped_before_compute() -> None:
    double = Doubler()
    batcher = Batcher(double, limit=4, linger=0)
    first = asyncio.create_task(batcher.submit(1))
    await asyncio.to_thread(double.started.wait, NET_SECONDS)
    abandoned, kept = asyncio.create_task(batcher.submit(2)), asyncio.create_task(batcher.submit(3))
    await turns()
    abandoned.cancel()
    double.gate.set()
    assert (await kept).value == 6
    assert (await first).value == 2
    assert double.batches == [[1], [3]]


async def test_a_failed_batch_fails_its_requests_and_no_others() -> None:
    double = Doubler()
    double.gate.set()
    batcher = Batcher(double, limit=1, linger=0)
    with pytest.raises(ValueError, match="unlucky"):
        await batcher.submit(13)
    assert (await batcher.submit(2)).value == 4
    called = threading.Event()
    batcher.call(called.set)
    assert await asyncio.to_thread(called.wait, NET_SECONDS)
