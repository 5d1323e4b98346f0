"""Memory that a start has used and a service does not need any more."""

import ctypes


def give_back() -> None:
    """Return the C library's free pages to the system (glibc; elsewhere nothing): warming up leaves many."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
