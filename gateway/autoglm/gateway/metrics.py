"""The metrics at /metrics. Suffixes are vLLM's, so its dashboards work with the prefix `autoglm` instead of `vllm`."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from autoglm.common.errors import MeshError
from autoglm.common.modalities import MODALITY_NAMES
from autoglm.gateway.context import Tenant
from autoglm.v1.generation_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    FinishReason,
    Gate,
)
from autoglm.v1.modality_pb2 import Modality

FINISH_NAMES: dict[int, str] = {
    FINISH_REASON_STOP: "stop",
    FINISH_REASON_LENGTH: "length",
    FINISH_REASON_TOOL_CALLS: "tool_calls",
}

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_TENTHS = tuple(step / 10 for step in range(1, 11))


class GatewayMetrics:
    """The gateway's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From receiving a request to its first token.", _LATENCY
        )
        self.next_token = self._histogram(
            "inter_token_latency_seconds", "Between two steps of an answer.", _TOKEN_LATENCY
        )
        self.whole = self._histogram(
            "e2e_request_latency_seconds", "From receiving a request to the end of its answer.", _LATENCY
        )
        self.media_fetch = self._histogram("media_fetch_seconds", "Fetching one file from its URL.", _LATENCY)
        self.running = Gauge("autoglm_num_requests_running", "Requests in progress.", registry=self.registry)
        self.redis_up = Gauge("autoglm_redis_up", "Whether Redis responds.", registry=self.registry)
        self.damaged_redis_entries = Counter(
            "autoglm_redis_damaged_entries", "Damaged or foreign entries found in Redis.", registry=self.registry
        )
        self._success = self._counter("request_success", "Answers, by finish reason.", "finished_reason")
        self._errors = self._counter("request_errors", "Errors sent to clients, by type.", "code")
        self._rejected = self._counter(
            "requests_rejected", "Requests rejected, by tenant and limit.", "tenant", "reason"
        )
        self._reloads = Gauge(
            "autoglm_last_reload_successful",
            "Whether the current files of a setting are in use.",
            ["setting"],
            registry=self.registry,
        )
        self._queries = self._counter("embedding_cache_queries", "Lookups in a tier.", "modality", "tier")
        self._hits = self._counter("embedding_cache_hits", "Embeddings found in a tier.", "modality", "tier")
        self._gates = Histogram(
            "autoglm_gate_mean", "Mean gate of an answer.", ["modality"], buckets=_TENTHS, registry=self.registry
        )

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def finished(self, reason: FinishReason.ValueType) -> None:
        """Count one finished choice."""
        self._success.labels(FINISH_NAMES.get(reason, "unknown")).inc()

    def aborted(self) -> None:
        """Count one request whose client disconnected before the end."""
        self._success.labels("abort").inc()

    def failed(self, error: MeshError) -> None:
        """Count one error sent to a client."""
        self._errors.labels(error.type).inc()

    def rejected(self, tenant: Tenant, reason: str) -> None:
        """Count one rejected request. `reason` is the limit: the gateway's `capacity` or `memory`, or the tenant's
        `concurrent_requests` or `requests_per_minute`."""
        self._rejected.labels(tenant.name, reason).inc()

    def reloaded(self, setting: str, successful: bool) -> None:
        """Record whether loading the files of a setting succeeded."""
        self._reloads.labels(setting).set(successful)

    def looked_up(self, modality: Modality.ValueType, tier: str, hit: bool) -> None:
        """Count one lookup in the tier `local` or `redis` of the embedding cache."""
        self._queries.labels(MODALITY_NAMES[modality], tier).inc()
        if hit:
            self._hits.labels(MODALITY_NAMES[modality], tier).inc()

    def gated(self, gates: Iterable[Gate]) -> None:
        """Record the gates of one answer."""
        for gate in gates:
            self._gates.labels(MODALITY_NAMES[gate.modality]).observe(gate.mean)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"autoglm_{name}", text, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"autoglm_{name}", text, labels, registry=self.registry)
