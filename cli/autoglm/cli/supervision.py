"""Keeps a mesh's processes running: children are started again when they end, suspended processes are ended.

Nothing here waits for a process, so that one that is slow to start delays no other.
"""

import signal
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import NoReturn

import psutil

from autoglm.cli.processes import StartError, reap_orphans

SHORTEST_DELAY, LONGEST_DELAY = 0.5, 10.0
STABLE_SECONDS = 60.0
WATCH_SECONDS = 0.5
SUSPENDED_CHECKS = 4
SCAN_SECONDS = 5.0
RESTARTED = ("ray::", "haproxy")  # Serve starts its actors and HAProxy again; without a server of Ray the mesh ends

Say = Callable[[str], None]


class Backoff:
    """Exponential back-off: how long to wait before each restart.

    The first restart is immediate, then the delay doubles from `SHORTEST_DELAY` to `LONGEST_DELAY`. It starts anew once
    a child has run for `STABLE_SECONDS`.
    """

    def __init__(self) -> None:
        self._next = 0.0

    def delay(self, ran: float) -> float:
        """Return the seconds to wait before restarting a child that has run for `ran` seconds."""
        delay = 0.0 if ran >= STABLE_SECONDS else self._next
        self._next = min(LONGEST_DELAY, max(SHORTEST_DELAY, 2 * delay))
        return delay


class SupervisedChild:
    """A child process that is started again whenever it ends. `name` begins the log lines about it.

    The first start raises what `start` raises; a later one that fails is repeated like that of a child that ended.
    """

    def __init__(self, name: str, start: Callable[[], subprocess.Popen[bytes]], say: Say) -> None:
        self._name, self._start, self._say = name, start, say
        self._backoff = Backoff()
        self._restart_at: float | None = None
        self._started = time.monotonic()
        self.process = start()

    def check(self) -> None:
        """Restart the child if it has ended and the delay is over; does not wait."""
        if self._restart_at is None and self.process.poll() is not None:
            self._schedule(_ending(self.process.returncode), time.monotonic() - self._started)
        if self._restart_at is not None and time.monotonic() >= self._restart_at:
            self._restart()

    def _restart(self) -> None:
        self._restart_at, self._started = None, time.monotonic()
        try:
            self.process = self._start()
        except (OSError, subprocess.SubprocessError) as error:
            self._schedule(f"cannot be started ({error})", 0.0)

    def _schedule(self, reason: str, ran: float) -> None:
        delay = self._backoff.delay(ran)
        self._restart_at = time.monotonic() + delay
        self._say(f"{self._name} {reason}; starting it again" + (f" in {delay:g} s" if delay else ""))


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-status}"


class SuspendedProcesses:
    """Finds descendants that somebody has suspended (SIGSTOP) and that make no progress."""

    def __init__(self) -> None:
        self._descendants: list[psutil.Process] = []
        self._scanned = float("-inf")
        self._seen: dict[psutil.Process, tuple[float, int]] = {}  # its CPU time, and for how many checks in a row

    def check(self) -> list[psutil.Process]:
        """Return the descendants that at each of the last `SUSPENDED_CHECKS` checks were suspended, with the same CPU
        time: a tool that limits a process's CPU suspends it again and again, but lets it run in between."""
        before, self._seen = self._seen, {}
        for process in self._known():
            with suppress(psutil.Error):
                if process.status() == psutil.STATUS_STOPPED:
                    used = sum(process.cpu_times()[:2])
                    then, checks = before.get(process, (used, 0))
                    self._seen[process] = used, checks + 1 if used == then else 1
        return [process for process, (_, checks) in self._seen.items() if checks >= SUSPENDED_CHECKS]

    def _known(self) -> list[psutil.Process]:
        """The list is kept for `SCAN_SECONDS`: making it reads the parents of all processes of the machine."""
        if time.monotonic() >= self._scanned + SCAN_SECONDS:
            self._descendants, self._scanned = psutil.Process().children(recursive=True), time.monotonic()
        return self._descendants


def watch(
    ray: subprocess.Popen[bytes], children: Sequence[SupervisedChild], pause: Callable[[float], None], say: Say
) -> NoReturn:
    """Keep everything running until `pause` raises; raises StartError when `ray` ends, which nothing here can start."""
    suspended = SuspendedProcesses()
    while True:
        pause(WATCH_SECONDS)
        if ray.poll() is not None:
            raise StartError("Ray ended, and the services with it: start the mesh again")
        for child in children:
            child.check()
        own = [child.process.pid for child in children]
        reap_orphans(but=[ray.pid, *own])
        for process in suspended.check():
            _end_suspended(process, own, say)


def _end_suspended(process: psutil.Process, own: Collection[int], say: Say) -> None:
    with suppress(psutil.Error):
        name = process.name()
        if process.pid in own or name.startswith(RESTARTED):
            say(f"{name} (process {process.pid}) is suspended; ending it, so that it is started again")
            process.kill()
