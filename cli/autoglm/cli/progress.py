"""Bars for commands that take long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bars(console: Console) -> Progress:
    """Return bars with what is done, of how many, and times."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


@contextmanager
def telling(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar inside the block, and give what sets its label, what is done and of how many."""
    with progress_bars(console) as progress:
        task = progress.add_task("")
        yield lambda label, done, total: progress.update(task, description=label, completed=done, total=total)
