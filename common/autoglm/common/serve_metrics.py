"""The metrics of an encoder's replica, which Prometheus scrapes from Ray's agents."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.serve import metrics

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
_SIZES = [1, 2, 4, 8, 16, 32]


class EncoderMetrics:
    """Requests running, batch sizes and stage latencies; Serve adds application, deployment and replica."""

    def __init__(self) -> None:
        self._running = 0
        self._requests = metrics.Gauge("autoglm_num_requests_running", "Requests in the encoder now.")
        self._sizes = metrics.Histogram("autoglm_encoder_batch_size", "Size of the request's batch.", _SIZES)
        self._stages = metrics.Histogram(
            "autoglm_encoder_stage_seconds", "Seconds of a request in each stage.", _SECONDS, ("stage",)
        )

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as running while the block runs."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def batched(self, size: int) -> None:
        """Record the size of a batch that a request was in."""
        self._sizes.observe(size)

    def encoded(self, preprocess: float, queue: float, compute: float) -> None:
        """Record where a request's time went, in seconds."""
        for stage, seconds in (("preprocess", preprocess), ("queue", queue), ("compute", compute)):
            self._stages.observe(seconds, {"stage": stage})

    def _count(self, change: int) -> None:
        self._running += change
        self._requests.set(self._running)
