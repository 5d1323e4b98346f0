"""Runs the cluster, the load and the faults, and writes what was found: python -m tools.cluster --minutes 10"""

import argparse
import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.progress import Progress

from autoglm.common.progress import shown_progress
from autoglm.training.measured import conditions

from .accounting import accounts, metrics_differ
from .alerts import QUIET_SECONDS, fired
from .faults import FAULTS, Disruption
from .network import become_child, isolate
from .parts import Cluster
from .programs import missing
from .report import ClusterRun, write_report
from .timeline import Passage, alerts_cleared, disrupted, undisturbed

SETTLE_SECONDS = 2 + QUIET_SECONDS  # for the gateways' last lines, and for alerts to count as cleared
USUAL_SECONDS = 30.0  # of a fault, without the time that it is held
SHOW_CURSOR = "\x1b[?25h"


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.cluster", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of mixed load before the faults; default: 10")
    parser.add_argument("--only", default="", help="only the faults with this in their names, such as Redis")
    parser.add_argument("--logs", type=Path, help="folder for the logs of all parts; by default none is kept")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main(given: Sequence[str]) -> int:
    """Check what is needed, and run inside namespaces; return the exit status."""
    options = arguments(given)
    if options.inside is None:
        if lines := missing():
            print("\n".join(lines), file=sys.stderr)
            return 2
        return isolate(given)
    become_child()
    keep_logs = partial(copy_logs, options.inside, options.logs)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: interrupted(keep_logs))
    try:
        return run(options)
    finally:
        keep_logs()


def interrupted(keep_logs: Callable[[], None]) -> None:
    """End at once; the processes end with the namespace of this one."""
    print(f"{SHOW_CURSOR if sys.stderr.isatty() else ''}\ninterrupted: nothing is written", file=sys.stderr)
    keep_logs()
    os._exit(130)


def copy_logs(folder: Path, logs: Path | None) -> None:
    """Copy what all parts have printed, if it is wanted."""
    if logs is None:
        return
    logs.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, logs)
    rays = (folder / "ray/session_latest").resolve() / "logs"
    if rays.is_dir():
        shutil.copytree(rays, logs / "ray", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))


def run(options: argparse.Namespace) -> int:
    """Run everything and write the report; return 1 if something is wrong with what was found."""
    faults = [fault for fault in FAULTS if options.only in fault.name]
    found = conditions() | {"benchmark": "python -m tools.cluster", "minutes": options.minutes}
    with shown_progress() as progress:
        task = progress.add_task("starting", total=None)
        cluster = Cluster.start(options.inside, lambda text: progress.update(task, description=text))
        progress.remove_task(task)
        seen = asyncio.run(observed(cluster, options.minutes * 60, faults, progress))
    path = write_report(found, seen)
    print(path.read_text(encoding="utf-8"))
    wrong = seen.faults()
    print("\n".join(["What is wrong:", *wrong]) if wrong else "Nothing is wrong.", file=sys.stderr)
    return int(bool(wrong))


async def observed(cluster: Cluster, seconds: float, faults: Sequence[Disruption], progress: Progress) -> ClusterRun:
    """Ask and disturb, and return what was seen."""
    stop, told = asyncio.Event(), Told(cluster, progress, seconds, faults)
    started, passages = time.time(), list[Passage]()
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(cluster.load.run(stop))
        telling = tasks.create_task(told.run())
        passages.append(await undisturbed(seconds))
        for fault in faults:
            told.next(fault)
            passages.append(await disrupted(cluster, fault))
        told.next(None)
        passages.append(await alerts_cleared())
        stop.set()
        await asking
        telling.cancel()
    await asyncio.sleep(SETTLE_SECONDS)
    entries = list(cluster.gateways.entries())
    firings = fired(started, time.time())
    differing = metrics_differ(cluster.gateways)
    return ClusterRun(passages, cluster.load.ended, accounts(cluster.load.ended, entries), firings, differing)


class Told:
    """The bar: seconds of the whole run, what happens now, and how the clients fare."""

    def __init__(self, cluster: Cluster, progress: Progress, seconds: float, faults: Sequence[Disruption]) -> None:
        self._load, self._progress, self._what = cluster.load, progress, "mixed load"
        self._left, self._started = [fault.hold + USUAL_SECONDS for fault in faults], time.monotonic()
        self._bar = progress.add_task("", total=int(seconds + sum(self._left) + USUAL_SECONDS))

    def next(self, fault: Disruption | None) -> None:
        """Begin a fault, or the end of the run."""
        self._what = "until no alert fires" if fault is None else fault.name
        left = sum(self._left) + USUAL_SECONDS
        self._left = self._left[1:]
        self._progress.update(self._bar, total=int(time.monotonic() - self._started + left))

    async def run(self) -> None:
        """Show it each second until cancelled."""
        while True:
            passed, ended = time.monotonic() - self._started, self._load.ended
            failed = sum(not each.expected for each in ended)
            text = f"{self._what}: {len(ended)} requests, {len(ended) / max(passed, 1):.1f}/s, {failed} failed; seconds"
            self._progress.update(self._bar, description=text, completed=int(passed))
            await asyncio.sleep(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
