"""From measured passes to their cost: a non-negative sum of what each pass, token and token of context costs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoglm.bench.plan.costs import PassCost


@dataclass(frozen=True, slots=True)
class TimedPass:
    """A forward pass: its tokens, the earlier tokens that they see in sum, and the seconds that it took."""

    tokens: float
    context: float
    seconds: float


def fitted(passes: Sequence[TimedPass]) -> PassCost:
    """Return the cost with the least squares of relative errors; what would be negative is 0."""
    rows = np.array([[1.0, each.tokens, each.context] for each in passes])
    seconds = np.array([each.seconds for each in passes])
    kept, found = [0, 1, 2], np.zeros(3)
    while kept:
        solution, *_ = np.linalg.lstsq(rows[:, kept] / seconds[:, None], np.ones(len(seconds)), rcond=None)
        if (solution >= 0).all():
            found[kept] = solution
            break
        del kept[int(solution.argmin())]
    base, token, context = (float(value) for value in found)
    return PassCost(base_s=base, token_s=token, context_s=context)


def worst_error(cost: PassCost, passes: Sequence[TimedPass]) -> float:
    """Return the largest relative error of `cost` for what was measured."""
    return max(abs(cost.seconds(each.tokens, each.context) / each.seconds - 1) for each in passes)
