"""The scheduler on plain data: no torch, no thread, no clock."""

import random
import subprocess
import sys
from types import SimpleNamespace
from typing import cast

import pytest

from autoglm.decoder.engine.cache import BLOCK_SIZE, BlockCache
from autoglm.decoder.engine.request import Request, SamplingConfig
from autoglm.decoder.engine.scheduler import EngineLimits, PrefillShare, Scheduler, tokens_to_first
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

    def swap(self, first: int, second: int, length: int) -> None:
        mine, other = self.contents[first], self.contents.get(second, (0, 0))
        assert length == max(mine[1], other[1])
        self.contents[first], self.contents[second] = other, mine
        self.contents = {slot: content for slot, content in self.contents.items() if content[1]}

    def clear(self, slot: int, length: int) -> None:
        assert self.contents.pop(slot, (0, 0))[1] == length


class CoreStandIn:
    """A scheduler, and the steps of a core that computes nothing: every sequence says token 7 to its end."""

    def __init__(self, seqs: int = 3, blocks: int = 100) -> None:
        self.slots, self.cache = FakeSlots(), BlockCache[object](blocks)
        self.scheduler = Scheduler(EngineLimits(seqs, BUDGET, blocks), self.cache, self.slots)
        self.share = PrefillShare(BUDGET)

    def add(self, prompt: int, answer: int = 1000, max_backlog: int | None = None) -> Sequence:
        """Queue a request of `prompt` tokens for an answer of `answer`."""
        plain = cast(Prompt, SimpleNamespace(token_ids=[1] * prompt))
        sampling = SamplingConfig(max_tokens=answer)
        sequence = Sequence(Request(plain, sampling, 10_000, max_backlog=max_backlog))
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[tuple[Sequence, int]]:
        """Do what the core does in a step; returns the chunks that were prefilled."""
        scheduler, chunks = self.scheduler, list[tuple[Sequence, int]]()
        scheduler.pause_slow_consumers()
        budget = scheduler.prefill_budget(self.share)
        while sequence := scheduler.admit(budget):
            sequence.num_computed_tokens = sequence.num_computed_tokens or sequence.num_cached_tokens
            chunk = budget.take(sequence)
            chunks.append((sequence, chunk))
            read = min(chunk, sequence.num_tokens_to_read)
            sequence.num_tokens_to_read -= read
            self._compute(sequence, chunk - read)
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
        self.slots.contents[sequence.slot] = (sequence.request.id, sequence.num_computed_tokens)

    def _emit(self, sequence: Sequence) -> None:
        sequence.append_token(7)
        sequence.num_outputs += 1
        if sequence.finish_reason(()):
            self.scheduler.release(sequence)

    def check(self) -> None:
        """Every slot has its own sequence's content, and every block is accounted for."""
        placed, running = self.scheduler.placed, self.scheduler.running
        assert [sequence.slot for sequence in running] == list(range(len(running)))
        wanted = {one.slot: (one.request.id, one.num_computed_tokens) for one in placed}
        assert len(wanted) == len(placed) <= self.scheduler.limits.max_num_seqs > max(wanted, default=0)
        assert self.slots.contents == {slot: row for slot, row in wanted.items() if row[1]}
        assert self.cache.reserved == sum(sequence.num_blocks for sequence in placed) <= self.cache.capacity
        assert all(sequence.num_blocks * BLOCK_SIZE >= sequence.num_computed_tokens for sequence in placed)

    def state(self, sequence: Sequence) -> str:
        scheduler = self.scheduler
        states = {
            "waiting": scheduler.waiting, "prefilling": scheduler.prefilling,
            "running": scheduler.running, "paused": scheduler.paused,
        }  # fmt: skip
        return next((name for name, members in states.items() if sequence in members), "gone")


def test_the_scheduler_needs_no_torch() -> None:
    code = "import sys, autoglm.decoder.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_shortest_prompt_that_fits_in_a_step_goes_first() -> None:
    core = CoreStandIn(seqs=2)
    sequences = [core.add(prompt, answer=3) for prompt in (30, 90, 10, 200, 20)]
    started = list[Sequence]()
    for _ in range(20):
        started += [sequence for sequence, _ in core.step() if sequence not in started]
    assert [len(one.request.prompt.token_ids) for one in started] == [10, 30, 20, 90, 200]
    assert all(len(sequence.output) == 3 for sequence in sequences)
    assert not core.scheduler.has_work
    assert core.cache.usage == 0


def test_admission_needs_a_slot_and_blocks_and_keeps_the_order() -> None:
    core = CoreStandIn(seqs=2, blocks=4)
    first, second = core.add(BLOCK_SIZE - 1), core.add(3 * BLOCK_SIZE)
    core.step()
    third = core.add(1)
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
    running, long = core.add(10), core.add(250)
    assert [chunk for _, chunk in core.step()] == [10, 90]
    short = core.add(20)
    for chunks in ([(short, 20), (long, 80)], [(long, 80)]):
        said = len(running.output)
        assert core.step() == chunks
        assert len(running.output) == said + 1
    assert core.state(long) == core.state(short) == "running"


def test_a_short_prompt_does_not_wait_for_longer_ones() -> None:
    """However many came before it, and whichever of them is under way."""
    core = CoreStandIn(seqs=8, blocks=400)
    longer = [core.add(prompt, answer=1) for prompt in (7000, 5000, 5000, 900)]
    core.step()
    short = core.add(50)
    assert core.step()[0] == (short, 50)
    assert len(short.output) == 2  # its first token, and that of the step's decoding
    assert all(not sequence.output for sequence in longer)


def test_a_long_prompt_ends_in_bounded_time_whatever_comes_after_it() -> None:
    """Half of each step is its own, though there is always a shorter prompt that could fill the step."""
    core = CoreStandIn(seqs=4)
    long = core.add(1000)
    for step in range(1, 21):
        core.add(BUDGET, answer=1)
        core.step()
        assert long.num_computed_tokens >= min(1000, step * BUDGET // 2)
    assert core.state(long) == "running"


def test_every_prompt_is_the_first_in_the_end() -> None:
    """Prompts of one length, between them and the end a stream of shorter ones: they end in the order they came."""
    core = CoreStandIn(seqs=4)
    longs, ended = [core.add(300, answer=1) for _ in range(3)], list[Sequence]()
    for _ in range(3 * 300 * 2 // BUDGET):
        core.add(BUDGET // 2, answer=1)
        core.step()
        ended += [sequence for sequence in longs if sequence.output and sequence not in ended]
    assert ended == longs


def test_equal_prompts_are_prefilled_one_after_another() -> None:
    """To share a step among them would end all of them late."""
    core = CoreStandIn(seqs=4)
    first, second, third = (core.add(70) for _ in range(3))
    assert core.step() == [(first, 70), (second, 30)]
    assert core.step() == [(second, 40), (third, 60)]
    assert core.step() == [(third, 10)]


def test_prompts_that_come_together_are_prefilled_one_a_step_while_others_wait() -> None:
    """Each is a pass of its own, and what a pass costs anyway is as much as the tokens of a step."""
    core = CoreStandIn(seqs=9)
    running = core.add(10)
    core.step()
    core.share = PrefillShare(24, 24)
    for _ in range(8):
        core.add(20)
    for _ in range(8):
        said = len(running.output)
        assert [chunk for _, chunk in core.step()] in ([20], [12, 8], [12], [8, 12])
        assert len(running.output) == said + 1


def test_a_long_prompt_goes_on_however_dear_a_pass_is() -> None:
    """Its half of the step is kept, whatever the passes of shorter prompts take."""
    core = CoreStandIn(seqs=4)
    core.add(10)
    core.step()
    core.share = PrefillShare(24, 24)
    long = core.add(240, answer=1)
    for step in range(1, 21):
        core.add(24, answer=1)
        core.step()
        assert long.num_computed_tokens >= 12 * step or long.output
    assert core.state(long) == "gone"


def test_what_has_to_be_read_counts_as_tokens() -> None:
    """Media in a cached prefix: a prompt with few new tokens may be a long one."""
    core = CoreStandIn(seqs=4)
    media, text = core.add(300), core.add(40)
    media.num_cached_tokens, media.num_tokens_to_read = 290, 200
    assert media.num_tokens_to_prefill == 210
    assert core.step() == [(text, 40), (media, 60)]
    assert core.step() == [(media, 100)]
    assert media.num_tokens_to_read == 40
    assert core.step() == [(media, 50)]
    assert core.state(media) == "running"


def test_what_the_prefix_cache_holds_makes_a_prompt_short() -> None:
    core = CoreStandIn(seqs=4)
    core.add(900)
    fresh, known = core.add(300), core.add(310)
    known.num_cached_tokens = 290
    assert core.step()[0] == (known, 20)
    assert core.state(fresh) == "prefilling"


def test_no_short_prompt_overtakes_the_first_when_blocks_are_scarce() -> None:
    core = CoreStandIn(seqs=8, blocks=10)
    core.add(5 * BLOCK_SIZE, answer=20)
    first = core.add(8 * BLOCK_SIZE, answer=1)
    for _ in range(60):
        core.add(10, answer=40)
        core.step()
    assert core.state(first) == "gone"
    assert first.output


def test_prompts_that_end_out_of_order_get_their_slots() -> None:
    """With every slot taken, a prompt that ends changes places with one that is still prefilled where it must run."""
    core = CoreStandIn(seqs=3)
    long, middle = core.add(900), core.add(300)
    core.step()
    assert core.state(long) == "prefilling"
    short = core.add(10)
    core.step()
    assert [core.state(one) for one in (long, middle, short)] == ["prefilling", "prefilling", "running"]
    assert sorted(one.slot for one in (long, middle)) == [1, 2]
    while core.state(middle) == "prefilling":
        core.step()
    while core.state(long) == "prefilling":
        core.step()
    assert core.scheduler.running == [short, middle, long]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_all_end(seed: int) -> None:
    """Prompts of any length, few slots and blocks, slow consumers and aborts: `check` holds after each step."""
    draw, core = random.Random(seed), CoreStandIn(seqs=1 + seed % 5, blocks=30)
    alive = list[Sequence]()
    for _ in range(150):
        if draw.random() < 0.4:
            backlog = draw.choice([None, 3])
            alive.append(core.add(draw.choice([1, 20, 64, 150, 700, 1500]), draw.randint(1, 60), backlog))
        core.step()
        for sequence in alive:
            sequence.num_acknowledged = sequence.num_outputs - draw.randint(0, 2)
        if alive and draw.random() < 0.1 and core.state(victim := alive.pop(draw.randrange(len(alive)))) != "gone":
            core.scheduler.abort(victim)
            core.check()
    for _ in range(5000):
        for sequence in alive:
            sequence.num_acknowledged = sequence.num_outputs
        if core.scheduler.has_work or core.scheduler.paused:
            core.step()
    assert all(len(sequence.output) == sequence.max_new_tokens for sequence in alive)
    assert (core.cache.reserved, core.slots.contents) == (0, {})


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
    core.step()
    assert core.state(slow) == "paused"  # to go on costs something, so it is not for a few tokens
    slow.num_acknowledged = 3
    late = core.add(10)
    core.step()
    assert (core.state(slow), core.state(late)) == ("running", "waiting")  # its turn comes first
    assert slow.num_computed_tokens == slow.num_tokens == 30 + 5
    for _ in range(8):
        core.step()
    assert (core.state(slow), len(slow.output), core.state(late)) == ("paused", 8, "running")


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
    if state == "waiting":
        others = [core.add(20), core.add(20)]
    victim = core.add(150 if state == "prefilling" else 20, max_backlog=2 if state == "paused" else None)
    if state != "waiting":
        others = [core.add(20), core.add(20)]
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


def test_a_prompt_waits_for_shorter_ones_and_as_much_of_longer_ones() -> None:
    assert tokens_to_first(100, []) == 100
    assert tokens_to_first(100, [40, 100]) == 240
    assert tokens_to_first(100, [7000, 5000]) == 200
    assert tokens_to_first(100, [40, 150]) == 280
    assert tokens_to_first(7000, [40, 150]) == 7190
