"""Progress bars of training and evaluation, which become a line every ten seconds where there is no terminal."""

import os
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from autoglm.common.progress import lines

Item = TypeVar("Item")

_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


@contextmanager
def bar(what: str, total: int | None, unit: str, initial: int = 0) -> Iterator["tqdm[Any]"]:
    """Give a bar of `total` units, of which `initial` are done."""
    if sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=unit, initial=initial, mininterval=1) as shown:
            yield shown
        return
    with (
        open(os.devnull, "w") as nowhere,
        tqdm(total=total, desc=what, unit=unit, initial=initial, file=nowhere, bar_format=_LINE) as shown,
        lines(lambda: [str(shown)]),
    ):
        yield shown


def track(items: Iterable[Item], what: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items`, and show how many are done."""
    if total is None and isinstance(items, Collection):
        total = len(items)
    with bar(what, total, unit) as shown:
        for item in items:
            yield item
            shown.update()
