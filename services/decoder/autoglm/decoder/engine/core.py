"""The embedded engine's core: a step is a chunk of the waiting prompts, then one token for all running sequences.

It knows no thread, no event loop, no tokenizer and no client: requests, acknowledgements and aborts come in, outputs go
out, all of it plain data.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from collections.abc import Sequence as Rows
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

from torch import Tensor

from autoglm.common.error_log import ErrorLog
from autoglm.common.errors import InternalError, InvalidRequest
from autoglm.decoder.engine.cache import BLOCK_SIZE, BlockCache
from autoglm.decoder.engine.grammar import Grammar
from autoglm.decoder.engine.lora import Adapter
from autoglm.decoder.engine.prefix_keys import block_keys
from autoglm.decoder.engine.protocol import MAX_STEP_RECORDS, Stats, StepRecord
from autoglm.decoder.engine.request import ChosenToken, GrammarSpec, Request, RequestOutput
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.sampling import advance, choose
from autoglm.decoder.engine.scheduler import EngineLimits, PrefillBudget, PrefillShare, Scheduler
from autoglm.decoder.engine.sequence import Sequence
from autoglm.decoder.engine.step_times import StepTimes
from autoglm.decoder.engine.throughput import ThroughputEstimate

logger = logging.getLogger("autoglm.decoder")


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What the core has to do: how many sequences have slots, how many tokens are left to prefill of each prompt that
    is `prefilling` and of each that is `waiting`; and how fast that has been going."""

    placed: int = 0
    prefilling: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    estimate: ThroughputEstimate = field(default_factory=ThroughputEstimate)


def _not_given(name: object) -> NoReturn:
    raise InternalError(f"this engine was started without {name}")


class EngineCore:
    """Computes what its scheduler says. `stops` are the tokens that end an answer; `make_grammar` and `get_adapter`
    give what requests name, and may be left out where none does."""

    def __init__(
        self,
        runner: Runner,
        limits: EngineLimits,
        stops: Collection[int],
        make_grammar: Callable[[GrammarSpec], Grammar] = _not_given,
        get_adapter: Callable[[str], Adapter] = _not_given,
    ) -> None:
        self.runner, self.limits, self._stops = runner, limits, frozenset(stops)
        self._make_grammar, self._get_adapter = make_grammar, get_adapter
        self._cache: BlockCache[Tensor] = BlockCache(limits.num_blocks, limits.enable_prefix_caching)
        self.scheduler = Scheduler(limits, self._cache, runner.slots)
        self._sequences: dict[int, Sequence] = {}  # by their requests' ids
        self._arrived: list[Sequence] = []  # since the last step
        self._estimate, self._times, self._errors = ThroughputEstimate(), StepTimes(), ErrorLog(logger)
        # Seconds of CPU say the same however busy the machine is.
        self._clock = time.thread_time if runner.device.type == "cpu" else time.monotonic
        self._prefix_queries = self._prefix_hits = 0
        self._num_prefilled = 0  # what was found in the prefix cache included
        self._prompt_tokens = self._generation_tokens = 0
        self._num_computed = 0  # tokens, also those that are computed again
        self._in_step = set[int]()  # the requests that this step computes
        self._last_token = 0.0
        self.step_records: deque[StepRecord] = deque(maxlen=MAX_STEP_RECORDS)

    def add(self, request: Request) -> None:
        """Queue a request."""
        sequence = self._sequences[request.id] = Sequence(request)
        self._arrived.append(sequence)
        self.scheduler.add(sequence)

    def abort(self, request_id: int) -> None:
        """Drop a request in whatever state it is; one that has ended already needs nothing."""
        if sequence := self._sequences.get(request_id):
            self.scheduler.abort(sequence)
            del self._sequences[request_id]

    def acknowledge(self, request_id: int, num_outputs: int) -> None:
        """Record that the consumer has read `num_outputs` outputs of a request so far."""
        if sequence := self._sequences.get(request_id):
            sequence.num_acknowledged = num_outputs

    @property
    def stats(self) -> Stats:
        """Return how busy the core is, and what it has done."""
        scheduler = self.scheduler
        running, waiting = len(scheduler.running) + len(scheduler.prefilling), len(scheduler.waiting)
        return Stats(
            running=running,
            waiting=waiting + len(scheduler.paused),
            cache_usage=self._cache.usage,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
            preemptions=scheduler.num_preemptions,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            active=running + waiting,
            progress=self._num_computed,
            last_token=self._last_token,
        )

    @property
    def load(self) -> EngineLoad:
        """Return what is ahead of a new request."""
        prefilling, waiting = (
            tuple(sequence.num_tokens_to_prefill for sequence in sequences)
            for sequences in (self.scheduler.prefilling, self.scheduler.waiting)
        )
        return EngineLoad(len(self.scheduler.placed), prefilling, waiting, self._estimate)

    def step(self) -> Iterator[list[RequestOutput]]:
        """Do one step, and yield what each forward pass adds to the answers as soon as it is known."""
        with self._recorded_step(), self._timed_prefill():
            self._pause_slow_consumers()
            yield from self._prefill()
            self.scheduler.reserve_blocks()
            yield from self._timed_decode()

    @contextmanager
    def _recorded_step(self) -> Iterator[None]:
        """Note what the step does, for the metrics."""
        started, before = time.monotonic(), self._num_computed
        self._in_step.clear()
        yield
        if tokens := self._num_computed - before:
            self.step_records.append(StepRecord(len(self._in_step), tokens, time.monotonic() - started))

    @contextmanager
    def _timed_prefill(self) -> Iterator[None]:
        """Estimate throughput from one step. Tokens that the prefix cache has count, so that those that wait are
        expected to find as many there."""
        started, before = time.monotonic(), self._num_prefilled
        yield
        if tokens := self._num_prefilled - before:
            self._estimate.prefilled(tokens, time.monotonic() - started)

    # --- prefill ------------------------------------------------------------------------------------

    def _prefill(self) -> Iterator[list[RequestOutput]]:
        """Chunked prefill: compute the prompts that share this step, one after another."""
        while self._arrived:
            yield from self._attempt(self._arrived[0], partial(self._look_up, self._arrived.pop(0)))
        budget = self.scheduler.prefill_budget(self._prefill_limit())
        started = self._clock()
        while sequence := self.scheduler.admit(budget):
            yield from self._attempt(sequence, partial(self._prefill_share, sequence, budget))
        if budget.num_passes:
            self.runner.synchronize()
            self._times.prefilled(budget.num_tokens, budget.num_passes, self._clock() - started)

    def _prefill_limit(self) -> PrefillShare:
        """Return how much this step may prefill: as much as is allowed, unless running sequences wait meanwhile."""
        most = self.limits.max_num_batched_tokens
        return self._times.prefill_share(most) if self.scheduler.running else PrefillShare(most)

    def _attempt(self, sequence: Sequence, do: Callable[[], list[RequestOutput]]) -> Iterator[list[RequestOutput]]:
        """Yield what `do` adds to answers, if anything; a sequence for which it fails ends alone."""
        try:
            outputs = do()
        except Exception as error:
            outputs = [self._fail(sequence, error)]
        if outputs:
            yield outputs

    def _look_up(self, sequence: Sequence) -> list[RequestOutput]:
        """Count what the prefix cache has of a new sequence, which is scheduled by the tokens that are left."""
        sequence.keys = block_keys(sequence.request.prompt, (), sequence.request.cache_salt)
        sequence.num_cached_tokens = len(self._cached_blocks(sequence)) * BLOCK_SIZE
        return []

    def _cached_blocks(self, sequence: Sequence) -> list[Tensor]:
        """Return what the prefix cache has of all but the last token at most, as that one's logits are needed."""
        return self._cache.match(sequence.keys[: (sequence.num_tokens - 1) // BLOCK_SIZE])

    def _prefill_share(self, sequence: Sequence, budget: PrefillBudget) -> list[RequestOutput]:
        if sequence.inputs is None:
            self._prepare(sequence)
        tokens = budget.take(sequence)
        if read := min(tokens, sequence.num_tokens_to_read):
            self.runner.read(sequence, read)
        self._num_computed += tokens
        self._in_step.add(sequence.request.id)
        return self._prefill_chunk(sequence, tokens - read) if tokens > read else []

    def _prepare(self, sequence: Sequence) -> None:
        """Make what a sequence needs to be computed, and begin after what the prefix cache has of it."""
        request = sequence.request
        sequence.started = sequence.started or time.monotonic()
        if request.grammar is not None and sequence.grammar is None:
            sequence.grammar = self._make_grammar(request.grammar)
        if request.adapter is not None and sequence.adapter is None:
            sequence.adapter = self._get_adapter(request.adapter.name)
        if sequence.output:
            sequence.keys = block_keys(request.prompt, sequence.output[:-1], request.cache_salt)
        sequence.cached_blocks = self._cached_blocks(sequence)
        sequence.num_computed_tokens = len(sequence.cached_blocks) * BLOCK_SIZE
        self._num_prefilled += sequence.num_computed_tokens
        if not sequence.output:
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self._prefix_queries += sequence.num_tokens
            self._prefix_hits += sequence.num_cached_tokens
        self.runner.prepare(sequence)

    def _prefill_chunk(self, sequence: Sequence, tokens: int) -> list[RequestOutput]:
        """Compute the next `tokens` of a prompt; returns the first token of its answer if they are its last."""
        first_block = sequence.num_computed_tokens // BLOCK_SIZE
        logits = self.runner.prefill(sequence, sequence.slot, tokens)
        self._num_prefilled += tokens
        self._cache_blocks(sequence, first_block)
        if sequence.num_computed_tokens < sequence.num_tokens:
            return []
        self.scheduler.run(sequence)
        self._prompt_tokens += 0 if sequence.output else sequence.num_tokens
        assert sequence.inputs is not None
        sequence.gates, sequence.inputs = sequence.inputs.gates(), None
        return [] if sequence.output else self._sample([sequence], logits)  # after a preemption its token is known

    def _cache_blocks(self, sequence: Sequence, first: int) -> None:
        """Prefix cache: keep a sequence's whole blocks from number `first` on."""
        for number in range(first, min(sequence.num_computed_tokens // BLOCK_SIZE, len(sequence.keys))):
            if self._cache.accepts(key := sequence.keys[number]):
                self._cache.store(key, self.runner.slots.block(sequence.slot, number))

    def _pause_slow_consumers(self) -> None:
        """Backpressure: pause the sequences whose consumers do not keep up, and keep what they have in the cache."""
        for sequence in self.scheduler.backlogged:
            self._cache_answer(sequence)
        self.scheduler.pause_slow_consumers()

    def _cache_answer(self, sequence: Sequence) -> None:
        """Prefix cache: keep a running sequence's blocks, its answer's included."""
        sequence.keys = block_keys(sequence.request.prompt, sequence.output[:-1], sequence.request.cache_salt)
        self._cache_blocks(sequence, 0)

    # --- decode -------------------------------------------------------------------------------------

    def _timed_decode(self) -> Iterator[list[RequestOutput]]:
        """Decode, and measure how long it takes."""
        started, decoded = self._clock(), [sequence.request.id for sequence in self.scheduler.running]
        yield from self._decode()
        self._num_computed += len(decoded)
        self._in_step.update(decoded)
        if decoded:
            self._times.decoded(self._clock() - started)

    def _decode(self) -> Iterator[list[RequestOutput]]:
        """Compute and sample one token for every running sequence."""
        for sequences, outcome in list(self._outcomes(list(self.scheduler.running), 0)):
            if isinstance(outcome, Exception):
                yield [self._fail(sequence, outcome) for sequence in sequences]
                continue
            for sequence in sequences:
                sequence.num_computed_tokens += 1
            yield self._sample(sequences, outcome)

    def _outcomes(self, batch: list[Sequence], first: int) -> Iterator[tuple[list[Sequence], Tensor | Exception]]:
        """Yield logits for `batch`, which begins in slot `first`; a batch that fails is tried in halves, so that in the
        end only those sequences fail that fail alone."""
        if not batch:
            return
        try:
            yield batch, self.runner.decode(batch, first)
        except Exception as error:
            if len(batch) == 1:
                yield batch, error
                return
            logger.warning("a step for %d sequences failed, trying halves: %s", len(batch), type(error).__name__)
            half = len(batch) // 2
            yield from self._outcomes(batch[:half], first)
            yield from self._outcomes(batch[half:], first + half)

    # --- sample and emit ----------------------------------------------------------------------------

    def _sample(self, sequences: Rows[Sequence], logits: Tensor) -> list[RequestOutput]:
        """Choose a token for each sequence from `logits` [n, vocabulary]."""
        outputs = []
        for sequence, chosen in zip(sequences, choose(logits, sequences), strict=True):
            try:
                if isinstance(chosen, Exception):
                    raise chosen
                outputs.append(self._emit(sequence, chosen))
            except Exception as error:
                outputs.append(self._fail(sequence, error))
        return outputs

    def _emit(self, sequence: Sequence, chosen: ChosenToken) -> RequestOutput:
        """Add a token to its sequence, and return what the consumer sees of it."""
        self._generation_tokens += 1
        self._last_token = time.time()
        sequence.append_token(chosen.token_id)
        advance(sequence, chosen.token_id)
        finish = sequence.finish_reason(self._stops)
        output = sequence.output_of(chosen if sequence.shows(finish) else None, finish)
        if finish is not None:
            self._finish(sequence)
        return output

    def _finish(self, sequence: Sequence) -> None:
        """End a running sequence; what follows in its conversation will begin with this answer."""
        self._cache_answer(sequence)
        self._estimate.finished(busy=len(self.scheduler.running) == self.limits.max_num_seqs)
        self.abort(sequence.request.id)

    def _fail(self, sequence: Sequence, error: Exception) -> RequestOutput:
        """End a sequence alone with an error; one of the client's, as of a format with a dead end, is not logged."""
        if not isinstance(error, InvalidRequest):
            self._errors.error("a sequence failed", error, sequence.request.ids)
        self.abort(sequence.request.id)
        return sequence.output_of(None, error)
