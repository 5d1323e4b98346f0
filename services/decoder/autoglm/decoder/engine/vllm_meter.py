"""What vLLM reports of each step, added up."""

import time
from collections import deque
from dataclasses import replace
from typing import Any

from autoglm.decoder.engine.protocol import MAX_STEP_RECORDS, Stats, StepRecord


class VllmMeter:
    """A stat logger of vLLM's; not a subclass of its base, which is there only where vLLM is."""

    def __init__(self) -> None:
        self.stats = Stats()
        self.step_records: deque[StepRecord] = deque(maxlen=MAX_STEP_RECORDS)

    @property
    def idle(self) -> Stats:
        """Return the counters with no requests: vLLM does not report after its last request was aborted."""
        return replace(self.stats, running=0, waiting=0, cache_usage=0.0)

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        """Store what vLLM reports of a step."""
        if scheduler_stats is None:
            return
        prefixes, last = scheduler_stats.prefix_cache_stats, self.stats
        put_back, read, generated = (
            getattr(iteration_stats, name, 0)
            for name in ("num_preempted_reqs", "num_prompt_tokens", "num_generation_tokens")
        )
        self.stats = Stats(
            running=scheduler_stats.num_running_reqs,
            waiting=scheduler_stats.num_waiting_reqs,
            cache_usage=scheduler_stats.kv_cache_usage,
            prefix_queries=last.prefix_queries + prefixes.queries,
            prefix_hits=last.prefix_hits + prefixes.hits,
            preemptions=last.preemptions + put_back,
            prompt_tokens=last.prompt_tokens + read,
            generation_tokens=last.generation_tokens + generated,
            progress=last.progress + 1,
            last_token=time.time() if generated else last.last_token,
        )
        if scheduler_stats.num_running_reqs:
            self.step_records.append(StepRecord(scheduler_stats.num_running_reqs, read + generated))

    def __getattr__(self, name: str) -> Any:  # log, log_engine_initialized, and what later versions call
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None
