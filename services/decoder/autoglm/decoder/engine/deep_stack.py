"""Threads with a stack of a size of their own: llguidance recurses as deep as a format is nested or chained."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
STACK = 8 * 2**20  # bytes: 300 nested objects, or a chain of 2400 rules

_starting = threading.Lock()


def with_stack(size: int, function: Callable[[], T]) -> T:
    """Return what `function` returns, or raise what it raises, in a thread whose stack has `size` bytes."""
    outcome: list[T | BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="format", daemon=True)
    with _starting:  # the size is that of all threads that start meanwhile
        usual = threading.stack_size(size)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
