"""Child processes that never outlive this one.

On Linux every descendant whose parent has died becomes our own child (a "subreaper", prctl(2)), so that none is left
once we have no more children; and a direct child gets SIGTERM when we die.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import IO

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class StartError(Exception):
    """The mesh cannot start or continue; the message says in one line what to do."""


class TryAgain(StartError):
    """This start failed for a passing reason, such as a port that another program took meanwhile."""


class Signals:
    """The first SIGINT or SIGTERM sets `stop`, for an orderly stop; the next sets `hurry`, for a quick one."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.hurry = threading.Event()

    def install(self) -> None:
        """Handle both signals from now on; call this in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, _number: int, _frame: object) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies (Linux only; elsewhere this does nothing)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child in its own process group, so that a terminal's Ctrl-C reaches only us.

    Call this in the main thread. All children stay in one session: Linux gives each session the same part of the CPU
    (autogroups), and the niceness of what prepares answers would count for nothing beside answers of another session.
    """
    return subprocess.Popen(
        command, env=environment, stdout=stdout, stderr=stderr, process_group=0, preexec_fn=_die_with_parent
    )


def end(child: subprocess.Popen[bytes], patience: float, hurry: threading.Event) -> None:
    """Send SIGTERM to `child`, wait `patience` seconds or until `hurry`, then send SIGKILL."""
    child.terminate()
    limit = time.monotonic() + patience
    while child.poll() is None and time.monotonic() < limit and not hurry.is_set():
        time.sleep(0.05)
    if child.poll() is None:
        child.kill()
    child.wait()


def end_descendants(patience: float, but: Collection[int] = ()) -> None:
    """End all descendants `but` these ids: SIGTERM, and after `patience` seconds SIGKILL, until none is left."""
    limit = time.monotonic() + patience
    asked: set[int] = set()
    while children := [child for child in psutil.Process().children(recursive=True) if child.pid not in but]:
        for child in children:
            if time.monotonic() > limit:
                _send(child, signal.SIGKILL)
            elif child.pid not in asked:
                asked.add(child.pid)
                _send(child, signal.SIGTERM)
        _reap()
        time.sleep(0.05)


def reap_orphans(but: Collection[int]) -> None:
    """Take the exit status of adopted children that have ended: until then they stay as zombies.

    `but` are the ids of the children that were started here. Their `Popen` objects need the status themselves, and have
    to be asked for it between two calls.
    """
    with suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in but:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
