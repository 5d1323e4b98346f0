"""Bars for commands that take long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Tell = Callable[[str, int, int], None]


def progress_bars(console: Console) -> Progress:
    """Return bars with what is done, of how many, and times."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def telling_in(progress: Progress) -> Tell:
    """Return what sets the label of a new bar, what is done and of how many."""
    task = progress.add_task("")
    return lambda label, done, total: progress.update(task, description=label, completed=done, total=total)


@contextmanager
def telling(console: Console) -> Iterator[Tell]:
    """Show one bar inside the block, and give what sets it."""
    with progress_bars(console) as progress:
        yield telling_in(progress)
