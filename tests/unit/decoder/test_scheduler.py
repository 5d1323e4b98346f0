"""The scheduler on plain data: no torch, no thread, no clock."""

import subprocess
import sys
from types import SimpleNamespace
from typing import cast

import pytest

from autoglm.decoder.engine.cache import BLOCK_SIZE, BlockCache
from autoglm.decoder.engine.request import Request, SamplingConfig
from autoglm.decoder.engine.scheduler import EngineLimits, Scheduler
from autoglm.decoder.engine.sequence import Sequence
from autoglm.fusion.prompt import Prompt

BUDGET = 100  # tokens of prompts in a step


class FakeSlots:
    """Remembers whose keys and values are in which slot, as the scheduler moves them; written by `steps` below."""

    def __init__(self) -> None:
        self.contents: dict[int, tuple[int, int]] = {}  # slot → request id, positions

    def move(self, source: int, target: int, length: int) -> None:
        assert target not in self.contents
        if length:
            assert self.contents[source][1] == length
            self.contents[target] = self.contents[source]

    def clear(self, slot: int, length: int) -> None:
        assert self.contents.pop(slot, (0, 0))[1] == length


class CoreStandIn:
    """A scheduler, and the steps of a core that computes nothing: every sequence says token 7 to its end."""

    def __init__(self, seqs: int = 3, blocks: int = 100) -> None:
        self.slots, self.cache = FakeSlots(), BlockCache[object](blocks)
        self.scheduler = Scheduler(EngineLimits(seqs, BUDGET, blocks), self.cache, self.slots)

    def add(self, prompt: int, answer: int = 1000, max_backlog: int | None = None) -> Sequence:
        """Queue a request of `prompt` tokens for an answer of `answer`."""
        plain = cast(Prompt, SimpleNamespace(token_ids=[1] * prompt))
        sampling = SamplingConfig(max_tokens=answer)
        sequence = Sequence(Request(plain, sampling, 10_000, max_backlog=max_backlog))
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[tuple[Sequence, int]]:
        """Do what the core does in a step; returns the chunks that were prefilled."""
        scheduler, chunks, budget = self.scheduler, list[tuple[Sequence, int]](), BUDGET
        scheduler.pause_slow_consumers()
        while budget and (sequence := scheduler.admit()):
            chunk = scheduler.prefill_chunk(sequence, budget)
            budget -= chunk
            chunks.append((sequence, chunk))
            self._compute(sequence, chunk)
            if sequence.num_computed_tokens == sequence.num_tokens:
                scheduler.run(sequence)
                if not sequence.output:
                    self._emit(sequence)
        scheduler.reserve_blocks()
        for sequence in list(scheduler.running):
            self._compute(sequence, 1)
            self._emit(sequence)
        self.check()
        return chunks

    def _compute(self, sequence: Sequence, tokens: int) -> None:
        sequence.num_computed_tokens += tokens
        self.slots.contents[self.scheduler.slot(sequence)] = (sequence.request.id, sequence.num_computed_tokens)

    def _emit(self, sequence: Sequence) -> None:
        sequence.append_token(7)
        sequence.num_outputs += 1
        if sequence.finish_reason(()):
            self.scheduler.release(sequence)

    def check(self) -> None:
        """Every slot has its own sequence's content, and every block is accounted for."""
        placed = self.scheduler.placed
        wanted = {slot: (one.request.id, one.num_computed_tokens) for slot, one in enumerate(placed)}
        assert self.slots.contents == {slot: row for slot, row in wanted.items() if row[1]}
        assert self.cache.reserved == sum(sequence.num_blocks for sequence in placed) <= self.cache.capacity
        assert all(sequence.num_blocks * BLOCK_SIZE >= sequence.num_computed_tokens for sequence in placed)

    def state(self, sequence: Sequence) -> str:
        scheduler = self.scheduler
        states: dict[str, list[Sequence | None]] = {
            "waiting": list(scheduler.waiting), "prefilling": [scheduler.prefilling],
            "running": [*scheduler.running], "paused": [*scheduler.paused],
        }  # fmt: skip
        return next((name for name, members in states.items() if sequence in members), "gone")


def test_the_scheduler_needs_no_torch() -> None:
    code = "import sys, autoglm.decoder.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_first_come_is_first_served_and_nobody_starves() -> None:
    core = CoreStandIn(seqs=2)
    sequences = [core.add(prompt, answer=3) for prompt in (30, 90, 10, 200, 20)]
    started = list[Sequence]()
    for _ in range(20):
        started += [sequence for sequence, _ in core.step() if sequence not in started]
    assert started == sequences
    assert all(len(sequence.output) == 3 for sequence in sequences)
    assert not core.scheduler.has_work
    assert core.cache.usage == 0


def test_admission_needs_a_slot_and_blocks_and_keeps_the_order() -> None:
    core = CoreStandIn(seqs=2, blocks=4)
    first, second, third = core.add(BLOCK_SIZE - 1), core.add(3 * BLOCK_SIZE), core.add(1)
    core.step()
    assert [core.state(one) for one in (first, second, third)] == ["running", "waiting", "waiting"]
    assert second.num_blocks == 0  # it needs four blocks, and three are free; the third does not overtake it
    core.scheduler.abort(second)
    core.step()
    assert core.state(third) == "running"
    fourth = core.add(1)
    core.step()
    assert core.state(fourth) == "waiting"  # no slot


def test_a_long_prompt_is_prefilled_in_chunks_between_others() -> None:
    core = CoreStandIn()
    running, long, short = core.add(10), core.add(250), core.add(20)
    assert [chunk for _, chunk in core.step()] == [10, 90]
    for chunks in ([(long, 100)], [(long, 60), (short, 20)]):
        said = len(running.output)
        assert core.step() == chunks
        assert len(running.output) == said + 1
    assert core.state(long) == core.state(short) == "running"


def test_preemption_takes_from_the_last_to_arrive() -> None:
    core = CoreStandIn(blocks=4)
    first, second = core.add(2 * BLOCK_SIZE - 3, 30), core.add(BLOCK_SIZE + 10, 30)
    said = 0
    core.step()
    core.step()
    while core.state(second) == "running":
        said = len(second.output)
        core.step()
    assert (core.state(first), core.scheduler.waiting[0]) == ("running", second)
    assert (len(second.output), second.num_blocks, second.num_computed_tokens) == (said, 0, 0)
    assert core.scheduler.num_preemptions == 1
    for _ in range(60):
        core.step()
    assert [len(one.output) for one in (first, second)] == [30, 30]


def test_preemption_reaches_the_sequence_that_is_prefilled() -> None:
    core = CoreStandIn(blocks=6)
    first, last = core.add(BLOCK_SIZE - 2), core.add(5 * BLOCK_SIZE - 1)
    core.step()
    core.step()
    assert core.state(last) == "prefilling"
    core.step()  # the first needs a second block
    assert (core.state(first), core.state(last), last.num_computed_tokens) == ("running", "waiting", 0)


def test_a_slow_consumer_holds_no_slot_and_goes_on_where_it_was() -> None:
    core = CoreStandIn(seqs=2)
    slow, other = core.add(30, max_backlog=5), core.add(30)
    for _ in range(8):
        core.step()
    assert (core.state(slow), len(slow.output), slow.num_blocks) == ("paused", 5, 0)
    assert len(other.output) > 5
    assert core.scheduler.placed == [other]
    slow.num_acknowledged = 2
    late = core.add(10)
    core.step()
    assert (core.state(slow), core.state(late)) == ("running", "waiting")  # its turn comes first
    assert slow.num_computed_tokens == slow.num_tokens == 30 + 5
    for _ in range(8):
        core.step()
    assert (core.state(slow), len(slow.output), core.state(late)) == ("paused", 7, "running")


def test_those_that_catch_up_together_keep_their_order() -> None:
    core = CoreStandIn(seqs=3)
    slow = [core.add(10, max_backlog=1) for _ in range(3)]
    core.step()
    core.scheduler.pause_slow_consumers()
    assert core.scheduler.paused == slow
    for sequence in slow:
        sequence.num_acknowledged = 10
    core.scheduler.pause_slow_consumers()
    assert list(core.scheduler.waiting) == slow


@pytest.mark.parametrize("state", ["waiting", "prefilling", "running", "paused"])
def test_an_abort_frees_everything_in_each_state(state: str) -> None:
    core = CoreStandIn(seqs=2)
    victim = core.add(150 if state == "prefilling" else 20, max_backlog=2 if state == "paused" else None)
    others = [core.add(20), core.add(20)]
    if state == "waiting":
        core.scheduler.waiting.rotate(-1)  # after the others
    for _ in range(3 if state == "paused" else 1):
        core.step()
    assert core.state(victim) == state
    core.scheduler.abort(victim)
    core.check()
    assert core.state(victim) == "gone"
    for _ in range(3):
        core.step()
    assert core.scheduler.running == others


def test_the_last_sequence_moves_into_a_slot_that_becomes_free() -> None:
    core = CoreStandIn(seqs=4)
    first, second, third = (core.add(10) for _ in range(3))
    long = core.add(300)
    core.step()
    assert core.state(long) == "prefilling"
    core.scheduler.abort(first)
    assert core.scheduler.placed == [third, second, long]
    core.check()
    core.scheduler.abort(second)
    assert core.scheduler.placed == [third, long]
    core.check()


def test_pending_tokens_count_what_is_ahead_of_a_new_request() -> None:
    core = CoreStandIn(seqs=1)
    core.add(150)
    core.add(40)
    assert core.scheduler.num_pending_tokens == 190
    core.step()
    assert core.scheduler.num_pending_tokens == 90
    core.step()
    assert core.scheduler.num_pending_tokens == 40
