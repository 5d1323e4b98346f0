"""The decoder's engine in a simulation: its own scheduler and step times, with computed instead of measured seconds."""

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Rows
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol, cast

import simpy

from autoglm.bench.plan.costs import DecoderCost, EncoderCost, StageCosts
from autoglm.bench.plan.devices import Processor
from autoglm.bench.plan.encoders import Waits
from autoglm.decoder.engine.cache import BLOCK_SIZE, BlockCache, num_blocks
from autoglm.decoder.engine.request import Request, SamplingConfig
from autoglm.decoder.engine.scheduler import EngineLimits, PrefillBudget, PrefillShare, Scheduler
from autoglm.decoder.engine.sequence import Sequence
from autoglm.decoder.engine.step_times import StepTimes

if TYPE_CHECKING:
    from autoglm.fusion.prompt import Prompt


class TokenSink(Protocol):
    """Whoever waits for an answer."""

    def delivered(self, now: float) -> None:
        """Take note of the next token, which is there at `now`."""


Deliver = Callable[[Rows[TokenSink]], None]  # bring each of them its next token


class _NoMemory:
    """Slots without keys and values."""

    def move(self, source: int, target: int, length: int) -> None: ...

    def clear(self, slot: int, length: int) -> None: ...

    def swap(self, first: int, second: int, length: int) -> None: ...


def limits_of(costs: StageCosts, cache_bytes: int) -> EngineLimits:
    """Return what an engine may use whose keys and values have `cache_bytes`, as decoder/model.py does. On a GPU, where
    a slot takes its memory at once, half is for slots and half for prefixes."""
    cost, each = costs.decoder, num_blocks(costs.decoder.max_model_len)
    blocks = cache_bytes // (BLOCK_SIZE * cost.kv_bytes_per_token) // (1 if costs.on_cpu else 2)
    sequences = cost.max_num_seqs if costs.on_cpu else min(cost.max_num_seqs, blocks // each)
    total = min(blocks, sequences * each)
    return EngineLimits(sequences, cost.max_num_batched_tokens, total, enable_prefix_caching=False)


class SimulatedEngine:
    """One replica of the decoder."""

    def __init__(
        self, env: simpy.Environment, cost: DecoderCost, limits: EngineLimits, device: Processor, deliver: Deliver
    ) -> None:
        self._env, self._cost, self._limits, self._device, self._deliver = env, cost, limits, device, deliver
        self._scheduler = Scheduler(limits, BlockCache(limits.num_blocks, False), _NoMemory())
        self._times = StepTimes()
        self._sinks: dict[Sequence, TokenSink] = {}
        self._idle: simpy.Event | None = None
        self.in_flight = 0
        env.process(self._steps())

    def submit(self, prompt: int, answer: int, prefix: int, sink: TokenSink) -> None:
        """Queue a prompt of `prompt` tokens, of which the prefix cache has the first `prefix`.

        Whoever chose this engine has counted the request in `in_flight`.
        """
        plain = cast("Prompt", SimpleNamespace(token_ids=range(prompt)))  # the scheduler looks at its length alone
        sequence = Sequence(Request(plain, SamplingConfig(max_tokens=answer), prompt + answer, arrival_time=0.0))
        sequence.num_cached_tokens = min(prefix, prompt - 1) // BLOCK_SIZE * BLOCK_SIZE
        self._sinks[sequence] = sink
        self._scheduler.add(sequence)
        self._wake()

    def _wake(self) -> None:
        if self._idle is not None:
            self._idle.succeed()
            self._idle = None

    @property
    def _has_work(self) -> bool:
        return self._scheduler.has_work

    def _steps(self) -> Waits:
        """Do what EngineCore.step does, for ever."""
        while True:
            if not self._has_work:
                self._idle = self._env.event()
                yield self._idle
            yield from self._before()
            if self._scheduler.waiting or self._scheduler.prefilling:
                yield from self._prefill()
            self._scheduler.reserve_blocks()
            yield from self._decode()

    def _before(self) -> Waits:
        """Do what comes before a step: nothing, where encoders are services of their own."""
        yield from ()

    def _prefill(self) -> Waits:
        scheduler, spent = self._scheduler, 0.0
        most = self._limits.max_num_batched_tokens
        share = self._times.prefill_share(most) if scheduler.running else PrefillShare(most)
        budget = scheduler.prefill_budget(share)
        while sequence := scheduler.admit(budget):
            seconds = self._pass(sequence, budget)
            spent += seconds
            yield self._device.run(seconds)
            if sequence.num_computed_tokens >= sequence.num_tokens:
                scheduler.run(sequence)
                if not sequence.output:  # after a preemption its token is known
                    self._emit([sequence])
        if budget.num_passes:
            self._times.prefilled(budget.num_tokens, budget.num_passes, spent)

    def _pass(self, sequence: Sequence, budget: PrefillBudget) -> float:
        """Take a sequence's share of a step, and return the seconds of its pass."""
        tokens = budget.take(sequence)
        start = sequence.num_computed_tokens or sequence.num_cached_tokens
        sequence.num_computed_tokens = start + tokens
        return self._cost.prefill.seconds(tokens, tokens * (start + tokens / 2))

    def _decode(self) -> Waits:
        if not (running := list(self._scheduler.running)):
            return
        context = sum(sequence.num_computed_tokens for sequence in running)
        seconds = self._cost.decode.seconds(len(running), context)
        yield self._device.run(seconds)
        self._times.decoded(seconds)
        for sequence in running:
            sequence.num_computed_tokens += 1
        self._emit(running)

    def _emit(self, sequences: Rows[Sequence]) -> None:
        self._deliver([self._sinks[sequence] for sequence in sequences])
        for sequence in sequences:
            sequence.output.append(0)
            if len(sequence.output) >= sequence.max_new_tokens:
                self._scheduler.abort(sequence)
                del self._sinks[sequence]
                self.in_flight -= 1


class OneProcess(SimulatedEngine):
    """The whole model in one process, as vLLM runs multimodal models: the media that wait are encoded in a step of the
    engine, before its prompts and its running answers, one batch of each modality at most."""

    def __init__(
        self, env: simpy.Environment, cost: DecoderCost, limits: EngineLimits, device: Processor, deliver: Deliver
    ) -> None:
        super().__init__(env, cost, limits, device, deliver)
        self._media: dict[str, deque[tuple[float, simpy.Event]]] = {}
        self._encoders: dict[str, EncoderCost] = {}

    def encode(self, kind: str, cost: EncoderCost, units: float) -> simpy.Event:
        """Return the event of a medium of `units` being encoded by the next steps."""
        done = self._env.event()
        self._encoders[kind] = cost
        self._media.setdefault(kind, deque()).append((units, done))
        self._wake()
        return done

    @property
    def _has_work(self) -> bool:
        return self._scheduler.has_work or any(self._media.values())

    def _before(self) -> Waits:
        for kind, waiting in self._media.items():
            if waiting:
                cost = self._encoders[kind]
                batch = [waiting.popleft() for _ in range(min(len(waiting), cost.max_batch))]
                yield self._device.run(cost.forward.seconds(max(units for units, _ in batch) * len(batch)))
                for _, done in batch:
                    done.succeed()
