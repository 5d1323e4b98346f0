"""How large an LRU cache must be for a wanted hit ratio: Che's approximation.

An item that is asked for with probability p is in the cache if it was asked for among the last T requests, which is the
case with probability 1 − (1 − p)^T ≈ 1 − e^(−pT). The sum of that over all items is the cache's size, and weighted by
p it is the hit ratio (Che, Tung and Wang, "Hierarchical Web caching systems", 2002).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from autoglm.bench.plan.schema import PlanError

_RANKS = 4096  # above so many, neighbouring ranks are taken together


def lru_entries(distinct: int, exponent: float, hit_ratio: float) -> int:
    """Return how many of `distinct` items, popular by Zipf's law with `exponent`, an LRU cache has to hold so that it
    answers the share `hit_ratio` of requests."""
    groups = _zipf(distinct, exponent)
    low, high = 0.0, 1.0
    while _hits(groups, high) < hit_ratio:
        low, high = high, high * 2
        if high > 2.0**80:
            raise PlanError(f"cache.hit_ratio: {hit_ratio} cannot be reached")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _hits(groups, middle) < hit_ratio else (low, middle)
    return math.ceil(sum(count * -math.expm1(-p * high) for count, p in groups))


def _hits(groups: Sequence[tuple[float, float]], window: float) -> float:
    return sum(count * p * -math.expm1(-p * window) for count, p in groups)


def _zipf(distinct: int, exponent: float) -> list[tuple[float, float]]:
    """Return (number of items, probability of each); the probabilities of all items add up to 1."""
    edges, rank = [1], 1
    while rank <= distinct:
        rank = min(distinct + 1, max(rank + 1, rank + rank // _RANKS))
        edges.append(rank)
    groups = [(stop - start, ((start + stop - 1) / 2) ** -exponent) for start, stop in pairwise(edges)]
    total = sum(count * weight for count, weight in groups)
    return [(count, weight / total) for count, weight in groups]
