"""The watchdog ends a process of which a thread hangs, and no process that only has much to do."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from autoglm.common.watchdog import HUNG_CHECKS, PROGRESS_SECONDS, WatchedThread

from ...waiting import NET_SECONDS, eventually

START = """\
import asyncio, logging, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from autoglm.common import watchdog
from autoglm.common.batching import Batcher

watchdog.CHECK_SECONDS = 0.02
logging.basicConfig()
forever = threading.Event()
"""
LOOP = """\
async def main():
    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    watchdog.watch({"event loop": lambda answer: loop.call_soon_threadsafe(lambda: (answer(), answered.set()))})
    await answered.wait()
    forever.wait()
asyncio.run(main())
"""
PASS = """\
async def main():
    batcher = Batcher(lambda items: forever.wait(), limit=1, linger=0)
    watchdog.watch({"event loop": asyncio.get_running_loop().call_soon_threadsafe, "forward": batcher.call})
    await batcher.submit(1)
asyncio.run(main())
"""
POOL = """\
pool = ThreadPoolExecutor(2)
watchdog.watch({"preprocess": pool.submit})
for _ in range(3):
    pool.submit(forever.wait)
forever.wait()
"""
ENDED = """\
calls = []
thread = threading.Thread(target=lambda: calls[0]())
watchdog.watch({"engine": lambda answer: calls or (calls.append(answer), thread.start())})
forever.wait()
"""
LOGGER = """\
watchdog.LOG_SECONDS = 0.1
for handler in logging.getLogger().handlers:
    handler.acquire()
pool = ThreadPoolExecutor(1)
watchdog.watch({"logging": pool.submit})
pool.submit(logging.warning, "never written")
forever.wait()
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START + program]
    return subprocess.run(command, capture_output=True, text=True, timeout=NET_SECONDS)


@pytest.mark.parametrize(
    ("program", "name"),
    [(LOOP, "event loop"), (PASS, "forward"), (POOL, "preprocess"), (ENDED, "engine")],
    ids=["event loop", "pass", "pool", "ended"],
)
def test_a_thread_that_hangs_ends_its_process(program: str, name: str) -> None:
    done = run(program)
    assert done.returncode == 1
    assert f"the {name} thread hangs: ending this process" in done.stderr
    assert "most recent call first" in done.stderr  # where each thread was


def test_a_logger_that_hangs_does_not_keep_the_process() -> None:
    assert run(LOGGER).returncode == 1


class Worker:
    """A thread that answers between two pieces of work, like one of an executor."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.watched = WatchedThread(self.pool.submit)
        assert not self.watched.is_hung()
        self.pool.submit(lambda: None).result(NET_SECONDS)  # so that it has answered
        assert not self.watched.is_hung()
        self.pool.submit(lambda: None).result(NET_SECONDS)

    def does(self, work: Callable[[], None]) -> None:
        """Have it do `work` before it answers again."""
        started = threading.Event()

        def begin() -> None:
            started.set()
            work()

        self.pool.submit(begin)
        assert started.wait(NET_SECONDS)
        assert not self.watched.is_hung()  # asks again


@pytest.fixture
def over() -> threading.Event:
    return threading.Event()


def test_a_thread_that_computes_does_not_hang(over: threading.Event) -> None:
    used = [0.0]

    def compute() -> None:
        while not over.is_set():
            used[0] = time.thread_time()

    def is_beyond(seconds: float) -> bool:
        return used[0] > seconds

    worker = Worker()
    worker.does(compute)
    for _ in range(3 * HUNG_CHECKS):
        eventually(partial(is_beyond, used[0] + 2 * PROGRESS_SECONDS), "the thread gets its turn")
        assert not worker.watched.is_hung()
    over.set()


def test_a_thread_that_waits_hangs_while_others_compute(over: threading.Event) -> None:
    worker = Worker()
    worker.does(lambda: assert_true(over.wait(NET_SECONDS)))
    spent = time.thread_time()
    while time.thread_time() < spent + 100 * PROGRESS_SECONDS:
        pass
    assert [worker.watched.is_hung() for _ in range(HUNG_CHECKS)] == [*[False] * (HUNG_CHECKS - 1), True]
    over.set()


def assert_true(value: bool) -> None:
    assert value


def test_a_thread_that_answers_late_starts_anew(over: threading.Event) -> None:
    worker = Worker()
    for _ in range(3):
        over.clear()
        worker.does(lambda: assert_true(over.wait(NET_SECONDS)))
        assert not any(worker.watched.is_hung() for _ in range(HUNG_CHECKS - 1))
        over.set()
        worker.pool.submit(lambda: None).result(NET_SECONDS)


def test_a_suspended_process_goes_on_when_it_is_resumed() -> None:
    program = "pool = ThreadPoolExecutor(1)\nwatchdog.watch({'pool': pool.submit})\n"
    program += "for line in sys.stdin: print(line, end='', flush=True)\n"
    command = [sys.executable, "-c", START + program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def echo(line: str) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line)
            process.stdin.flush()
            return process.stdout.readline()

        assert echo("one\n") == "one\n"
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        time.sleep(1)  # fifty checks long; that they pass is the point, and a suspended process tells nobody
        process.send_signal(signal.SIGCONT)
        for number in range(50):
            assert echo(f"{number}\n") == f"{number}\n"
        process.communicate(timeout=NET_SECONDS)
        assert process.returncode == 0
