"""Memory: what there is, and what a start has used and a service does not need any more."""

import ctypes
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Return the bytes that can still be used: the machine's, or what the container has left."""
    free: int = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)


def give_back() -> None:
    """Return the C library's free pages to the system (glibc; elsewhere nothing): warming up leaves many."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
