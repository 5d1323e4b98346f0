"""The metrics at /metrics. Those that vLLM has too have its names, with the prefix `autoglm_` instead of `vllm:`.

The values of every label are bounded: nothing that a client sends becomes one. Each series with known labels exists
from the start, so that `rate()` and alerts see the first event. docs/metrics.md is made from this.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations

from google.rpc import code_pb2
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics

from autoglm.common.errors import BY_REASON, MeshError, MethodNotFound
from autoglm.common.modalities import MEDIA_MODALITIES, MODALITY_NAMES
from autoglm.gateway.context import RequestContext, Tenant
from autoglm.v1.generation_pb2 import (
    CACHE_OUTCOME_LOCAL,
    CACHE_OUTCOME_MISS,
    CACHE_OUTCOME_REDIS,
    CACHE_OUTCOME_SHARED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    Gate,
    MediaStage,
)
from autoglm.v1.modality_pb2 import Modality

FINISH_NAMES: dict[int, str] = {
    FINISH_REASON_STOP: "stop",
    FINISH_REASON_LENGTH: "length",
    FINISH_REASON_TOOL_CALLS: "tool_calls",
}
OUTCOMES: dict[int, str] = {
    CACHE_OUTCOME_MISS: "miss",
    CACHE_OUTCOME_LOCAL: "local",
    CACHE_OUTCOME_REDIS: "redis",
    CACHE_OUTCOME_SHARED: "shared",
}

OTHER = "other"
METHODS: Mapping[str, tuple[str, ...]] = {
    "http": (
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/audio/transcriptions",
        "/v1/models",
        "/v1/models/{model}",
        OTHER,
    ),
    "grpc": (
        "ChatService/Complete",
        "ChatService/StreamComplete",
        "EmbeddingService/Embed",
        "TranscriptionService/Transcribe",
        "ModelService/ListModels",
        OTHER,
    ),
}
CLIENT_GONE = {"http": "499", "grpc": "CANCELLED"}
_ERRORS: tuple[type[MeshError], ...] = (*BY_REASON.values(), MethodNotFound)
CODES: Mapping[str, frozenset[str]] = {
    "http": frozenset({"200", "405", CLIENT_GONE["http"], *(str(kind.http_status) for kind in _ERRORS)}),
    "grpc": frozenset({"OK", CLIENT_GONE["grpc"], *(code_pb2.Code.Name(kind.grpc_code) for kind in _ERRORS)}),
}
REDIS_FAILURES = ("timeout", "connection", "refused", "damaged")
TENANT_LIMITS = ("capacity", "memory", "concurrent_requests", "requests_per_minute")
TOKEN_KINDS = ("prompt", "image", "audio", "cached", "generated", "reasoning")

_KINDS = tuple(row.kind for row in MEDIA_MODALITIES)
MEDIA = ("none", *("+".join(some) for n in range(len(_KINDS)) for some in combinations(_KINDS, n + 1)))

# Answers take up to the longest deadline, an hour.
_LATENCY = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 1200, 3600)
_TOKEN_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_ENCODE = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 3600)
_LOOKUP = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_TENTHS = tuple(step / 10 for step in range(1, 11))

disable_created_metrics()  # they are for counters that start again unseen; Prometheus would store each as a gauge


class GatewayMetrics:
    """The gateway's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._add_requests()
        self._add_answers()
        self._add_media()
        self._add_dependencies()
        self._start_at_zero()

    def _add_requests(self) -> None:
        self.requests = self._counter(
            "requests",
            "Requests, by how they ended. `method` is a path or an RPC; `other` is health, metrics, pages and what does"
            " not exist. A stream that fails or is left after it began counts with that code.",
            "api",
            "method",
            "code",
        )
        self.aborted = self._counter("requests_aborted", "Requests whose client left before the end.", "api")
        self.errors = self._counter("request_errors", "Errors sent to clients, by type.", "code")
        self._rejected = self._counter(
            "requests_rejected", "Requests rejected, by tenant and limit.", "tenant", "reason"
        )
        self._known_tenants = set[str]()
        self.in_progress = self._gauge("requests_in_progress", "Requests admitted and not yet answered.")
        self.bytes_in_progress = self._gauge(
            "bytes_in_progress", "Bytes that they hold here: their bodies, and the files at their URLs."
        )

    def _add_answers(self) -> None:
        labels = ("stream", "media")
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From receiving a request to its first token.", _LATENCY, *labels
        )
        self.next_token = self._histogram(
            "inter_token_latency_seconds", "Between two steps of an answer.", _TOKEN_LATENCY
        )
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds", "An answer's mean time per token after the first.", _TOKEN_LATENCY
        )
        self.whole = self._histogram(
            "e2e_request_latency_seconds", "From receiving a request to the end of its answer.", _LATENCY, *labels
        )
        self.stages = {
            stage: self._histogram(f"request_{stage}_time_seconds", text, _LATENCY)
            for stage, text in (
                ("queue", "From an answer's arrival at the decoder to the start of its prefill."),
                ("prefill", "From there to its first token."),
                ("decode", "From an answer's first token to its last."),
                ("inference", "Prefill and decode together."),
            )
        }
        self.prompt_tokens = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.generated_tokens = self._histogram("request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self.usage = self._counter(
            "usage_tokens",
            "Tokens of finished answers as `usage` counts them: `image`, `audio` and `cached` are part of `prompt`,"
            " `reasoning` is part of `generated`.",
            "kind",
        )
        self.success = self._counter(
            "request_success", "Answers that are complete, by finish reason.", "finished_reason"
        )
        self._gates = self._histogram("gate_mean", "Mean gate of an answer.", _TENTHS, "modality")

    def _add_media(self) -> None:
        self.media_fetch = self._histogram("media_fetch_seconds", "Fetching one file from its URL.", _LATENCY)
        self._encode = self._histogram(
            "media_encode_seconds",
            "From asking for an embedding to its arrival, by where it came from.",
            _ENCODE,
            "modality",
            "cache",
        )
        self._queries = self._counter("embedding_cache_queries", "Lookups in a tier.", "modality", "tier")
        self._hits = self._counter("embedding_cache_hits", "Embeddings found in a tier.", "modality", "tier")
        self._cache_bytes = self._gauge("embedding_cache_bytes", "Bytes of embeddings in this process.")
        self._cache_entries = self._gauge("embedding_cache_entries", "Embeddings in this process.")
        self.cache_evictions = self._counter(
            "embedding_cache_evictions", "Embeddings that made room for others in this process."
        )

    def _add_dependencies(self) -> None:
        self._redis = redis = CollectorRegistry()  # for `uses_redis`
        self.cache_lookup = self._histogram(
            "embedding_cache_lookup_seconds", "Lookups in Redis.", _LOOKUP, registry=redis
        )
        self.redis_up = self._gauge("redis_up", "Whether Redis responds.", registry=redis)
        self.redis_breaker_open = self._gauge(
            "redis_breaker_open",
            "Whether Redis is left alone for a while, after several failures in a row.",
            registry=redis,
        )
        self.redis_errors = self._counter("redis_errors", "Commands that failed, by reason.", "reason", registry=redis)
        self.damaged_redis_entries = self._counter(
            "redis_damaged_entries", "Damaged or foreign entries found in Redis.", registry=redis
        )
        self._reloads = self._gauge(
            "last_reload_successful", "Whether the current files of a setting are in use.", "setting"
        )

    def _start_at_zero(self) -> None:
        for api, methods in METHODS.items():
            self.aborted.labels(api)
            for method in methods:
                for code in sorted(CODES[api]) if method != OTHER else ():
                    self.requests.labels(api, method, code)
        for error in _ERRORS:
            self.errors.labels(error.type)
        self._rejected.labels(Tenant().name, "connections")
        for stream in (False, True):
            for media in MEDIA:
                self.first_token.labels(_text(stream), media)
                self.whole.labels(_text(stream), media)
        for metric, names in (
            (self.success, FINISH_NAMES.values()),
            (self.usage, TOKEN_KINDS),
            (self._gates, _KINDS),
        ):
            for name in names:
                metric.labels(name)
        self._start_media_at_zero("local", "miss", "local", "shared")

    def _start_media_at_zero(self, tier: str, *outcomes: str) -> None:
        for kind in _KINDS:
            for outcome in outcomes:
                self._encode.labels(kind, outcome)
            self._queries.labels(kind, tier)
            self._hits.labels(kind, tier)

    def uses_redis(self, breaker_open: Callable[[], float]) -> None:
        """Begin the series about Redis, which a gateway without one does not have."""
        self.registry.register(self._redis)
        self.redis_breaker_open.set_function(breaker_open)
        for reason in REDIS_FAILURES:
            self.redis_errors.labels(reason)
        self._start_media_at_zero("redis", "redis")

    def render(self, as_openmetrics: bool = False) -> bytes:
        """Return everything in Prometheus' text format, or in that of OpenMetrics, which has exemplars."""
        # Our names have no characters that need escaping, and looking for them takes a third of the time.
        if as_openmetrics:
            text: bytes = openmetrics.generate_latest(self.registry, openmetrics.ALLOWUTF8)
            return text
        return generate_latest(self.registry)

    # --- requests -----------------------------------------------------------------------------------

    def answered(self, api: str, method: str, code: str) -> None:
        """Count one request over `http` or `grpc`: what it asked for, and the status by which it ended."""
        self.requests.labels(api, method if method in METHODS[api] else OTHER, code).inc()
        if code == CLIENT_GONE[api]:
            self.aborted.labels(api).inc()

    def failed(self, error: MeshError) -> None:
        """Count one error sent to a client."""
        self.errors.labels(error.type).inc()

    def admits(self, tenant: Tenant) -> None:
        """Start a tenant's counters at zero. Tenants are those of the key file, so there are not many."""
        if tenant.name not in self._known_tenants:
            self._known_tenants.add(tenant.name)
            for limit in TENANT_LIMITS:
                self._rejected.labels(tenant.name, limit)

    def rejected(self, tenant: Tenant, reason: str) -> None:
        """Count one rejected request. `reason` is the limit: the gateway's `connections`, `capacity` or `memory`, or
        the tenant's `concurrent_requests` or `requests_per_minute`."""
        self._rejected.labels(tenant.name, reason).inc()

    # --- media --------------------------------------------------------------------------------------

    def encoded(self, stage: MediaStage, context: RequestContext) -> None:
        """Record how long a medium's embedding took, and where it came from."""
        child = self._encode.labels(MODALITY_NAMES[stage.modality], OUTCOMES.get(stage.cache, OTHER))
        child.observe(stage.encode.ToNanoseconds() / 1e9, exemplar_of(context))

    def looked_up(self, modality: Modality.ValueType, tier: str, hit: bool) -> None:
        """Count one lookup in the tier `local` or `redis` of the embedding cache."""
        self._queries.labels(MODALITY_NAMES[modality], tier).inc()
        if hit:
            self._hits.labels(MODALITY_NAMES[modality], tier).inc()

    def watch_cache(self, num_bytes: Callable[[], float], entries: Callable[[], float]) -> None:
        """Have each scrape ask how large the cache of this process is."""
        self._cache_bytes.set_function(num_bytes)
        self._cache_entries.set_function(entries)

    def gated(self, gates: Iterable[Gate]) -> None:
        """Record the gates of one answer."""
        for gate in gates:
            self._gates.labels(MODALITY_NAMES[gate.modality]).observe(gate.mean)

    # --- dependencies -------------------------------------------------------------------------------

    def reloaded(self, setting: str, successful: bool) -> None:
        """Record whether loading the files of a setting succeeded."""
        self._reloads.labels(setting).set(successful)

    def _gauge(self, name: str, text: str, *labels: str, registry: CollectorRegistry | None = None) -> Gauge:
        return Gauge(f"autoglm_{name}", text, labels, registry=registry or self.registry)

    def _histogram(
        self,
        name: str,
        text: str,
        buckets: tuple[float, ...],
        *labels: str,
        registry: CollectorRegistry | None = None,
    ) -> Histogram:
        return Histogram(f"autoglm_{name}", text, labels, buckets=buckets, registry=registry or self.registry)

    def _counter(self, name: str, text: str, *labels: str, registry: CollectorRegistry | None = None) -> Counter:
        return Counter(f"autoglm_{name}", text, labels, registry=registry or self.registry)


def content_type(as_openmetrics: bool) -> str:
    """Return the content type of what `render` returns."""
    return openmetrics.CONTENT_TYPE_LATEST if as_openmetrics else CONTENT_TYPE_PLAIN_0_0_4


def exemplar_of(context: RequestContext) -> dict[str, str] | None:
    """Return what leads from a sample to the trace of its request, if that is sampled."""
    return None if context.trace_id is None else {"trace_id": context.trace_id}


def _text(value: bool) -> str:
    return "true" if value else "false"
