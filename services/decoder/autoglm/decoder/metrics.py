"""The metrics of the decoder's replica. What vLLM has too is called as there."""

from ray.serve import metrics

from autoglm.common.ray_internals import start_at_zero
from autoglm.common.serve_metrics import ReplicaMetrics
from autoglm.decoder.engine.protocol import Engine, StepRecord

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60]
_SEQUENCES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
_TOKENS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]


class DecoderMetrics(ReplicaMetrics):
    """How busy the engine is, and what its steps do. The engine notes its steps, and they are recorded here each
    second, so that no step waits for a metric."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._add_gauges()
        self._add_histograms()
        self._counters = {
            "prompt_tokens": metrics.Counter("autoglm_prompt_tokens", "Tokens of the prompts that were prefilled."),
            "generation_tokens": metrics.Counter("autoglm_generation_tokens", "Tokens generated."),
            "prefix_queries": metrics.Counter("autoglm_prefix_cache_queries", "Prompt tokens looked up."),
            "prefix_hits": metrics.Counter("autoglm_prefix_cache_hits", "Prompt tokens found in the cache."),
            "preemptions": metrics.Counter("autoglm_num_preemptions", "Requests put back: the cache was full."),
        }
        self._counted = dict.fromkeys(self._counters, 0)
        for counter in self._counters.values():
            start_at_zero(counter)

    def _add_gauges(self) -> None:
        self._running = metrics.Gauge("autoglm_num_requests_running", "Requests that are being generated.")
        self._waiting = metrics.Gauge("autoglm_num_requests_waiting", "Requests that wait for a slot.")
        self._usage = metrics.Gauge("autoglm_kv_cache_usage_perc", "Share of the cache that running requests use.")
        self._last_token = metrics.Gauge(
            "autoglm_last_token_timestamp_seconds", "When the engine generated its last token."
        )

    def _add_histograms(self) -> None:
        self._step = metrics.Histogram(
            "autoglm_engine_step_seconds", "Duration of a step. The embedded engine's alone.", _SECONDS
        )
        self._batch = metrics.Histogram("autoglm_engine_batch_size", "Sequences computed in a step.", _SEQUENCES)
        self._tokens = metrics.Histogram(
            "autoglm_iteration_tokens_total", "Tokens computed in a step, of prompts and answers.", _TOKENS
        )

    def publish(self) -> None:
        """Record the steps since the last call, and what the engine counts."""
        super().publish()
        for step in self._engine.steps():
            self._record(step)

    def _record(self, step: StepRecord) -> None:
        self._batch.observe(step.num_sequences)
        self._tokens.observe(step.num_tokens)
        if step.seconds is not None:
            self._step.observe(step.seconds)

    def _set_gauges(self) -> None:
        stats = self._engine.stats()
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._usage.set(stats.cache_usage)
        self._last_token.set(stats.last_token)
        for name, counter in self._counters.items():
            if (more := getattr(stats, name) - self._counted[name]) > 0:
                counter.inc(more)
                self._counted[name] += more
