"""Runs cases: of every kind in turn, each known by its number, until there were so many or the time is over."""

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random

import grpc

from ..exploring import explore
from ..waiting import NET_SECONDS
from . import over_grpc, over_http, worker
from .tally import Result, Tally, of_http

ROOT = Path(__file__).resolve().parents[2]
IN_PROGRESS = 3  # cases at a time
SCHEMATHESIS = "HTTP: schemathesis"
Send = Callable[[int], Awaitable[Result]]


def through_the_doors(url: str, channel: grpc.aio.Channel, seed: int) -> Mapping[str, Send]:
    """Return, for each kind of case that goes through the gateway, what sends the one with a number."""
    http = {kind: partial(_over_http, url, kind, seed) for kind in over_http.HTTP}
    return http | {kind: partial(_over_grpc, channel, kind, seed) for kind in over_grpc.GRPC}


async def _over_http(url: str, kind: str, seed: int, number: int) -> Result:
    request = over_http.HTTP[kind](chance(seed, kind, number))
    return await asyncio.to_thread(over_http.send, url, request)


async def _over_grpc(channel: grpc.aio.Channel, kind: str, seed: int, number: int) -> Result:
    return await over_grpc.send(channel, over_grpc.GRPC[kind](chance(seed, kind, number)))


def chance(seed: int, kind: str, number: int) -> Random:
    """Return the chance of a case, the same in every run and whatever was run before."""
    return Random(f"{seed}/{kind}/{number}")


async def run(kinds: Mapping[str, Send], tally: Tally, goes_on: Callable[[int], bool]) -> None:
    """Run the cases 0, 1, 2, … of every kind as long as `goes_on`, which gets the number, and count how they end."""
    cases = ((kind, number) for number in itertools.takewhile(goes_on, itertools.count()) for kind in kinds)
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_PROGRESS):
            group.create_task(_work(kinds, cases, tally))


async def _work(kinds: Mapping[str, Send], cases: Iterator[tuple[str, int]], tally: Tally) -> None:
    for kind, number in cases:
        tally.add(kind, number, await kinds[kind](number))


def explored(url: str, tally: Tally, examples: int) -> None:
    """Have schemathesis make requests up from the document of the API, and count how they were answered."""
    try:
        seen = explore(url, examples)
    except Exception as error:  # schemathesis' failures, one or a group
        tally.add(SCHEMATHESIS, 0, Result("internal", str(error)))
        return
    for status, times in sum((each.valid + each.invalid for each in seen.values()), Counter[int]()).items():
        for number in range(times):
            tally.add(SCHEMATHESIS, number, of_http(status))


class Worker:
    """A service in a process of its own, which is started again when a case killed or stopped it."""

    def __init__(self, kind: str, seed: int) -> None:
        self._kind, self._seed = kind, seed
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def send(self, number: int) -> Result:
        """Have the case with this number run."""
        async with self._turn:
            process = self._process or await self._started()
            assert process.stdin is not None
            started = time.monotonic()
            process.stdin.write(b"%d\n" % number)
            try:
                line = await asyncio.wait_for(self._line(process), NET_SECONDS)
            except TimeoutError:
                await self.close()
                return Result("hang", "no answer", time.monotonic() - started)
            if not line:
                await self.close()
                return Result("death", f"status {process.returncode}", time.monotonic() - started)
            return Result(*json.loads(line))

    async def _started(self) -> asyncio.subprocess.Process:
        command = (sys.executable, "-m", "tests.fuzz.worker", self._kind, str(self._seed))
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=null, cwd=ROOT, start_new_session=True
        )
        assert await self._line(self._process), f"the worker with {self._kind} does not start"
        return self._process

    @staticmethod
    async def _line(process: asyncio.subprocess.Process) -> bytes:
        assert process.stdout is not None
        return await process.stdout.readline()

    async def close(self) -> None:
        """End the process, and those that it started."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@asynccontextmanager
async def in_processes(seed: int) -> AsyncIterator[Mapping[str, Send]]:
    """Yield, for each kind of case that goes to a service without a mesh, what sends the one with a number."""
    workers = {kind: Worker(kind, seed) for kind in worker.KINDS}
    try:
        yield {kind: each.send for kind, each in workers.items()}
    finally:
        for each in workers.values():
            await each.close()
