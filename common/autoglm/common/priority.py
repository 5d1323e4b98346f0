"""Work that gives way to answers that are being generated, where both want the same core."""

import os
import sys

NICENESS = 10  # a tenth of the CPU time of a thread of normal priority


def give_way() -> None:
    """Lower the priority of the calling thread, and of the threads and processes that it starts from now on. Only Linux
    has priorities of threads; elsewhere this does nothing."""
    if sys.platform == "linux":
        os.nice(NICENESS)
