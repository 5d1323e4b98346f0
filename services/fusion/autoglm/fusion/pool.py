"""One vector for a text, an image or a recording: the sum of its tokens' rows, brought to length 1."""

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import normalize

WINDOW = 1024  # tokens that are embedded at a time, so that memory does not grow with a text


def windows(token_ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Return `token_ids` in windows of at most WINDOW tokens."""
    return (token_ids[start : start + WINDOW] for start in range(0, len(token_ids), WINDOW))


def unit_sum(blocks: Iterable[Tensor]) -> Tensor:
    """Return the sum of the rows of `blocks`, each [n, d], at length 1: float32 [d] on the CPU."""
    return normalize(reduce(torch.add, (block.float().sum(0) for block in blocks)), dim=0).cpu()
