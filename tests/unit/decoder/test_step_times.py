"""How much a step may prefill, on made-up machines whose costs are known: no clock, no torch."""

from dataclasses import dataclass

import pytest

from autoglm.decoder.engine.scheduler import PrefillShare
from autoglm.decoder.engine.step_times import FEWEST_TOKENS, PREFILL_SECONDS, PREFILL_TIME, StepTimes

MOST = 1024


@dataclass(frozen=True)
class Machine:
    """A pass takes `fixed` seconds and `token` for each token of a prompt, a decode step `row` for each sequence."""

    fixed: float
    token: float
    row: float = 0.0

    @property
    def least(self) -> float:
        """What a prefill may take at least."""
        return max(PREFILL_SECONDS, PREFILL_TIME * self.fixed)

    def decode(self, sequences: int) -> float:
        return self.fixed + self.row * (sequences - 1)

    def step(self, times: StepTimes, sequences: int) -> tuple[int, float]:
        """Do a step; returns the tokens that were prefilled in it, and how long that took."""
        tokens = times.prefill_share(MOST).tokens
        seconds = self.fixed + self.token * tokens
        times.prefilled(tokens, 1, seconds)
        times.decoded(self.decode(sequences))
        return tokens, seconds


CPU = Machine(fixed=0.004, token=0.00015, row=0.0003)
GPU = Machine(fixed=0.010, token=0.00004, row=0.0001)  # 9 billion parameters
SMALL_GPU = Machine(fixed=0.020, token=0.0001, row=0.0002)


@pytest.mark.parametrize("machine", [CPU, GPU, SMALL_GPU])
@pytest.mark.parametrize("sequences", [1, 8, 32, 100])
def test_a_prefill_takes_as_long_as_a_decode_step(machine: Machine, sequences: int) -> None:
    times = StepTimes()
    times.decoded(machine.decode(1))
    for _ in range(60):
        machine.step(times, sequences)
    _, seconds = machine.step(times, sequences)
    decode = machine.decode(sequences)
    assert seconds == pytest.approx(max(decode, machine.least), rel=0.15)


@pytest.mark.parametrize("machine", [CPU, GPU, SMALL_GPU])
def test_a_pass_is_never_mostly_what_it_costs_anyway(machine: Machine) -> None:
    times = StepTimes()
    for _ in range(60):
        tokens, _ = machine.step(times, 1)
    assert tokens * machine.token > 0.8 * (machine.least - machine.fixed)


def test_nothing_is_limited_before_costs_are_known() -> None:
    times = StepTimes()
    assert times.prefill_share(MOST) == PrefillShare(MOST)
    times.prefilled(100, 1, 0.1)
    assert times.prefill_share(MOST) == PrefillShare(MOST)
    times.decoded(0.01)
    assert times.prefill_share(MOST) == PrefillShare(MOST)


def test_a_further_pass_counts_as_the_tokens_it_costs() -> None:
    times = StepTimes()
    for _ in range(60):
        GPU.step(times, 1)
    assert times.prefill_share(MOST).per_pass == pytest.approx(GPU.fixed / GPU.token, rel=0.1)


def test_prompts_with_a_long_context_get_fewer_tokens_but_some() -> None:
    times, slow = StepTimes(), Machine(CPU.fixed, 40 * CPU.token)
    for _ in range(60):
        before, _ = CPU.step(times, 1)
    for _ in range(60):
        tokens, _ = slow.step(times, 1)
    assert before > tokens == FEWEST_TOKENS
    for _ in range(60):
        after, _ = CPU.step(times, 1)
    assert after == pytest.approx(before, rel=0.1)


def test_one_pause_of_the_machine_changes_little() -> None:
    times = StepTimes()
    for _ in range(60):
        before, _ = CPU.step(times, 4)
    times.decoded(5.0)
    assert times.prefill_share(MOST).tokens <= 1.5 * before
    times.prefilled(before, 1, 5.0)
    assert times.prefill_share(MOST).tokens >= 0.7 * before


def test_more_sequences_leave_more_time() -> None:
    times = StepTimes()
    for _ in range(60):
        few, _ = CPU.step(times, 2)
    for _ in range(60):
        many, _ = CPU.step(times, 100)
    assert many > 1.3 * few


def test_passes_that_cost_nothing_more_are_not_unbounded_for_ever() -> None:
    """A clock that is too coarse says that tokens take no time."""
    times = StepTimes()
    for _ in range(30):
        times.decoded(0.01)
        times.prefilled(100, 1, 0.01)
    for _ in range(60):
        tokens, _ = GPU.step(times, 1)
    assert tokens == pytest.approx((GPU.least - GPU.fixed) / GPU.token, rel=0.1)
