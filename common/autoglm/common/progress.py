"""What a long command shows of itself: bars on a terminal; elsewhere, as in a log, a line every ten seconds."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, Task

LINE_SECONDS = 10.0


@contextmanager
def lines(describe: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Print to stderr what `describe` returns, a line each, every ten seconds in the block."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(LINE_SECONDS):
            for line in describe():
                print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=sys.stderr, flush=True)

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def shown_progress() -> Iterator["Progress"]:
    """Give what shows tasks on stderr in the block."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    on_terminal = console.is_terminal
    progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not on_terminal)
    with progress:
        if on_terminal:
            yield progress
            return
        with lines(lambda: [_line(task) for task in progress.tasks if task.started and not task.finished]):
            yield progress


def _line(task: "Task") -> str:
    """Return how far a task is: its name, what is done of how much, and the seconds that it took and will take."""
    of = "" if task.total is None else f": {task.completed:.0f} of {task.total:.0f}"
    left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
    return f"{task.description}{of}, {task.elapsed or 0:.0f} s{left}"
