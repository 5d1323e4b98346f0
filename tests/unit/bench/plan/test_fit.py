"""Costs of passes from times that were measured."""

from collections.abc import Sequence

import pytest

from autoglm.bench.plan.costs import PassCost
from autoglm.bench.stages.fit import TimedPass, fitted, worst_error

SIZES = [(1.0, 10.0), (1.0, 400.0), (8.0, 80.0), (32.0, 3200.0), (64.0, 64.0)]


def timed(base: float, token: float, context: float, noise: float = 0.0) -> Sequence[TimedPass]:
    """Return passes with these costs, every other one longer by `noise`."""
    return [
        TimedPass(tokens, seen, (base + token * tokens + context * seen) * (1 + noise * (number % 2)))
        for number, (tokens, seen) in enumerate(SIZES)
    ]


def test_costs_are_found_from_exact_times() -> None:
    passes = timed(0.004, 0.0002, 1e-6)
    cost = fitted(passes)
    assert (cost.base_s, cost.token_s, cost.context_s) == pytest.approx((0.004, 0.0002, 1e-6))
    assert worst_error(cost, passes) == pytest.approx(0, abs=1e-6)


def test_no_cost_is_negative() -> None:
    """Where longer passes are measured as the faster ones, a token costs nothing rather than less than that."""
    cost = fitted([TimedPass(tokens, 10.0, seconds) for tokens, seconds in ((1.0, 0.03), (8.0, 0.02), (64.0, 0.01))])
    assert min(cost.base_s, cost.token_s, cost.context_s) == 0.0
    assert max(cost.base_s, cost.context_s) > 0.0


def test_the_worst_error_is_that_of_the_pass_that_is_furthest_off() -> None:
    passes = timed(0.004, 0.0002, 1e-6, noise=0.25)
    known = PassCost(base_s=0.004, token_s=0.0002, context_s=1e-6)
    assert worst_error(known, passes) == pytest.approx(0.2)  # 1 / 1.25 is a fifth less than 1
    assert worst_error(fitted(passes), passes) < 0.25
