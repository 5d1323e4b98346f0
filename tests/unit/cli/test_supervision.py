"""Children that end are started again, and nothing that one of them does delays another or ends the watch."""

import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from autoglm.cli import processes, serve, supervision
from autoglm.cli.processes import StartError
from autoglm.cli.supervision import LONGEST_DELAY, STABLE_SECONDS, Backoff, SupervisedChild, SuspendedProcesses, watch

from ...waiting import NET_SECONDS, POLL_SECONDS, eventually

FOREVER = [sys.executable, "-c", "import signal; signal.pause()"]
BUSY = [sys.executable, "-c", "while True: pass"]


class Told(list[str]):
    """The lines of the log."""

    def count_of(self, text: str) -> int:
        return sum(text in line for line in self)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Every process of a test; none outlives it."""
    children: list[subprocess.Popen[bytes]] = []
    yield children
    for child in children:
        child.kill()
        child.wait()


Start = Callable[..., Callable[[], subprocess.Popen[bytes]]]


@pytest.fixture
def runs(started: list[subprocess.Popen[bytes]]) -> Start:
    """Make the function that starts a command."""

    def make(*command: str) -> Callable[[], subprocess.Popen[bytes]]:
        def start() -> subprocess.Popen[bytes]:
            started.append(processes.start(command or FOREVER))
            return started[-1]

        return start

    return make


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays of next to nothing."""
    monkeypatch.setattr(supervision, "SHORTEST_DELAY", 0.001)
    monkeypatch.setattr(supervision, "LONGEST_DELAY", 0.01)


def check_until_told(child: SupervisedChild, told: "Told", text: str, times: int) -> None:
    """Check `child` until so many lines with `text` are in the log."""

    def is_told() -> bool:
        child.check()
        return told.count_of(text) >= times

    eventually(is_told, f"the log has {times} lines with {text!r}")


def await_restart(child: SupervisedChild, ended: subprocess.Popen[bytes]) -> None:
    """Return when `child` is another process than the one that `ended`."""

    def is_restarted() -> bool:
        child.check()
        return child.process is not ended

    eventually(is_restarted, "it is started again")
    assert child.process.poll() is None


def test_the_delay_doubles_up_to_a_limit() -> None:
    backoff = Backoff()
    assert [backoff.delay(1.0) for _ in range(8)] == [0, 0.5, 1, 2, 4, 8, LONGEST_DELAY, LONGEST_DELAY]


def test_the_delay_starts_anew_after_a_stable_time() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.delay(0.1)
    assert backoff.delay(STABLE_SECONDS - 1) == 8
    assert [backoff.delay(STABLE_SECONDS), backoff.delay(0.1), backoff.delay(0.1)] == [0, 0.5, 1]


@pytest.mark.usefixtures("soon")
def test_a_child_killed_ten_times_comes_back_each_time(runs: Start, told: Told) -> None:
    child = SupervisedChild("The gateway", runs(), told.append)
    for times in range(1, 11):
        ended = child.process
        ended.kill()
        await_restart(child, ended)
        assert len(told) == times
    assert told[0] == "The gateway was ended by SIGKILL; starting it again"
    assert all(line.startswith("The gateway was ended by SIGKILL; starting it again in 0.0") for line in told[1:])


@pytest.mark.usefixtures("soon")
def test_a_child_that_ends_at_once_is_started_again_and_again(runs: Start, told: Told) -> None:
    child = SupervisedChild("The gateway", runs(sys.executable, "-c", "raise SystemExit(3)"), told.append)
    check_until_told(child, told, "starting it again", 5)
    assert {line.split(";")[0] for line in told} == {"The gateway ended with status 3"}


@pytest.mark.usefixtures("soon")
def test_a_start_that_fails_is_repeated(runs: Start, told: Told, tmp_path: Path) -> None:
    program = tmp_path / "cache"
    program.write_text("#!/bin/sh\nexec sleep 1000000\n")
    program.chmod(stat.S_IRWXU)
    child = SupervisedChild("The embedding cache", runs(str(program)), told.append)
    away = program.rename(tmp_path / "away")
    ended = child.process
    ended.kill()
    check_until_told(child, told, "cannot be started", 3)
    away.rename(program)
    await_restart(child, ended)


def test_a_first_start_that_fails_is_reported(runs: Start, told: Told) -> None:
    with pytest.raises(FileNotFoundError):
        SupervisedChild("The embedding cache", runs("/nonexistent/valkey"), told.append)


def short_pause() -> None:
    """Wait between two checks, as the supervisor does, but for less time; no test depends on how long."""
    time.sleep(POLL_SECONDS)


def watched_until(
    ray: subprocess.Popen[bytes], children: list[SupervisedChild], condition: Callable[[], object], told: Told
) -> None:
    """Watch until `condition` holds, as if somebody pressed Ctrl-C then."""
    limit = time.monotonic() + NET_SECONDS

    def pause(_seconds: float) -> None:
        assert time.monotonic() < limit
        if condition():
            raise KeyboardInterrupt
        short_pause()

    with pytest.raises(KeyboardInterrupt):
        watch(ray, children, pause, told.append)


def test_a_child_that_waits_for_its_restart_delays_no_other(
    runs: Start, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "SHORTEST_DELAY", 1e6)
    monkeypatch.setattr(supervision, "LONGEST_DELAY", 1e6)
    gateway = SupervisedChild("The gateway", runs(sys.executable, "-c", "raise SystemExit(1)"), told.append)
    cache = SupervisedChild("The embedding cache", runs(), told.append)
    watched_until(runs()(), [gateway, cache], lambda: told.count_of("in 1e+06 s"), told)
    first = cache.process
    first.kill()
    watched_until(runs()(), [gateway, cache], lambda: cache.process is not first, told)
    assert cache.process.poll() is None
    assert told.count_of("The gateway") == 2


def test_the_end_of_ray_ends_the_watch_during_a_restart(
    runs: Start, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "SHORTEST_DELAY", 1e6)
    monkeypatch.setattr(supervision, "LONGEST_DELAY", 1e6)
    gateway = SupervisedChild("The gateway", runs(sys.executable, "-c", "raise SystemExit(1)"), told.append)
    ray = runs()()
    watched_until(ray, [gateway], lambda: told.count_of("in 1e+06 s"), told)
    ray.kill()
    with pytest.raises(StartError, match="Ray ended"):
        watch(ray, [gateway], lambda _seconds: short_pause(), told.append)


def test_a_suspended_child_is_started_again(runs: Start, told: Told) -> None:
    child = SupervisedChild("The embedding cache", runs(), told.append)
    first = child.process
    first.send_signal(signal.SIGSTOP)
    watched_until(runs()(), [child], lambda: child.process is not first, told)
    assert f"(process {first.pid}) is suspended; ending it, so that it is started again" in told[0]
    assert told[1] == "The embedding cache was ended by SIGKILL; starting it again"


def test_a_suspended_process_that_nobody_restarts_is_left_alone(runs: Start, told: Told) -> None:
    ray, agent = runs()(), runs()()
    agent.send_signal(signal.SIGSTOP)
    checks = iter(range(100))
    watched_until(ray, [], lambda: next(checks, None) is None, told)
    assert psutil.Process(agent.pid).status() == psutil.STATUS_STOPPED
    assert told == []


def computes(process: psutil.Process, used: float) -> bool:
    return sum(process.cpu_times()[:2]) > used


def test_a_log_that_cannot_be_written_keeps_the_watch(runs: Start, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        child = SupervisedChild("The embedding cache", runs(), serve.say)
        first = child.process
        first.kill()
        watched_until(runs()(), [child], lambda: child.process is not first, told)
        with pytest.raises(OSError, match="No space left"):
            full.close()


def test_only_processes_that_stay_suspended_are_found(runs: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped, limited, free = runs()(), psutil.Process(runs(*BUSY)().pid), runs()()
    stopped.send_signal(signal.SIGSTOP)
    suspended = SuspendedProcesses()
    for _ in range(3 * supervision.SUSPENDED_CHECKS):
        used = sum(limited.cpu_times()[:2])
        eventually(partial(computes, limited, used), "it computes")
        limited.suspend()
        eventually(lambda: limited.status() == psutil.STATUS_STOPPED, "it is suspended")
        found = suspended.check()
        limited.resume()
    assert [process.pid for process in found] == [stopped.pid]
    assert free.poll() is None


ORPHANS = """\
import sys, time
from autoglm.cli import processes

processes.adopt_orphans()
own = processes.start([sys.executable, "-c", "raise SystemExit(7)"])
nurse = processes.start(["sh", "-c", "sleep 0.01 & sleep 0.01 & sleep 0.01 & echo"], stdout=-1)
nurse.communicate()

def zombies():
    import psutil
    return [child for child in psutil.Process().children() if child.status() == "zombie" and child.pid != own.pid]

limit = time.monotonic() + 60
while len(zombies()) < 3:
    assert time.monotonic() < limit
processes.reap_orphans(but=[own.pid])
assert own.wait() == 7
processes.reap_orphans(but=[own.pid])
assert not zombies()
print("reaped")
"""


def test_orphans_are_reaped_and_children_keep_their_status() -> None:
    command = [sys.executable, "-c", ORPHANS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=NET_SECONDS)
    assert (done.stdout, done.stderr) == ("reaped\n", "")
