"""What tells a command's progress: the label of a bar, what is done and of how many."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from autoglm.common.progress import shown_progress

if TYPE_CHECKING:
    from rich.progress import Progress

Tell = Callable[[str, int, int], None]


def telling_in(progress: "Progress") -> Tell:
    """Return what sets the label of a new bar, what is done and of how many."""
    task = progress.add_task("")
    return lambda label, done, total: progress.update(task, description=label, completed=done, total=total)


@contextmanager
def telling() -> Iterator[Tell]:
    """Show one bar inside the block, and give what sets it."""
    with shown_progress() as progress:
        yield telling_in(progress)
