"""A hostile client that runs while something else is watched."""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from ..waiting import NET_SECONDS

ROOT = Path(__file__).resolve().parents[2]


class Attacker:
    """A process that sends one kind of request again and again; see tests/faults/attacks/__main__.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._commands: IO[str] = process.stdin
        self._replies: IO[str] = process.stdout
        self._done: SimpleQueue[str] = SimpleQueue()
        self.seen: list[tuple[str, float]] = []  # what it learned, and in how many seconds
        threading.Thread(target=self._read, daemon=True).start()

    def prepare(self, name: str) -> None:
        """Make what the attack of this name sends."""
        self._tell(f"make {name}")
        self._wait()

    @contextmanager
    def attacking(self) -> Iterator[None]:
        """Send it inside the block, at least once."""
        self.seen.clear()
        self._tell("start")
        try:
            yield
        finally:
            self._tell("stop")
            self._wait()

    @property
    def outcomes(self) -> Counter[str]:
        """How often it learned what, the last time."""
        return Counter(outcome for outcome, _ in self.seen)

    def _tell(self, command: str) -> None:
        self._commands.write(f"{command}\n")
        self._commands.flush()

    def _wait(self) -> None:
        assert self._done.get(timeout=NET_SECONDS), "the hostile client has died"

    def _read(self) -> None:
        for line in self._replies:
            if line.startswith("["):
                outcome, seconds = json.loads(line)
                self.seen.append((outcome, seconds))
            else:
                self._done.put(line)
        self._done.put("")


@contextmanager
def running_attacker(http_url: str, grpc_address: str) -> Iterator[Attacker]:
    """A hostile client of these servers."""
    command = [sys.executable, "-m", "tests.faults.attacks", http_url, grpc_address]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield Attacker(process)
    finally:
        process.kill()
        process.wait(NET_SECONDS)
