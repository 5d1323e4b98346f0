"""The metrics of a replica. Prometheus scrapes them from Ray's agents, which put `ray_` before the names.

Ray's agents forget a gauge that is not set again for a while, and a histogram's `_sum` is made from the middles of its
buckets: what is to be exact is a counter.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import grpc
from ray.serve import metrics

from autoglm.common.error_log import ErrorLog
from autoglm.common.ray_internals import start_at_zero
from autoglm.common.server import Caller

PUBLISH_SECONDS = 1.0
RETRIED = "grpc-previous-rpc-attempts"  # metadata that gRPC adds from the second attempt on

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60]
_SIZES = [1, 2, 4, 8, 16, 32, 64]

logger = logging.getLogger("ray.serve")


class ReplicaMetrics(ABC):
    """The base: `autoglm_build_info`, and the gauges, set again each second; Serve adds application and replica."""

    def __init__(self) -> None:
        self._build = metrics.Gauge(
            "autoglm_build_info",
            "What the replica runs. The value is 1.",
            ("version", "bundle", "revision", "device", "engine"),
        )
        self._build_labels = dict[str, str]()
        self._retried = metrics.Counter(
            "autoglm_retried_calls",
            "Calls that arrive after Serve or another replica refused them and gRPC tried again.",
        )
        start_at_zero(self._retried)
        self._failed = metrics.Counter(
            "autoglm_failed_calls",
            "Calls that ended with an error of this service, by its gRPC code. Serve's own counters have them as OK.",
            ("code",),
        )
        start_at_zero(self._failed, code=grpc.StatusCode.INTERNAL.name)
        self._errors = ErrorLog(logger)

    def start(self, *, bundle: str, revision: str, device: str, engine: str) -> None:
        """Publish each second from now on, on the running event loop. The arguments say what the replica runs: a
        bundle, the revision of its part, a PyTorch device, and what computes."""
        described = {"bundle": bundle, "revision": revision, "device": device, "engine": engine}
        self._build_labels = {"version": version("autoglm-mesh"), **described}
        self._publishing = asyncio.get_running_loop().create_task(self._run())

    @contextmanager
    def call(self, caller: Caller) -> Iterator[None]:
        """Count a call that was tried before, and one on which the block sets an error."""
        if any(name == RETRIED for name, _ in caller.invocation_metadata() or ()):
            self._retried.inc()
        try:
            yield
        finally:
            code = caller.code()  # 0 unless one was set
            if isinstance(code, grpc.StatusCode) and code is not grpc.StatusCode.OK:
                self._failed.inc(tags={"code": code.name})

    @abstractmethod
    def _set_gauges(self) -> None:
        """Set every gauge to its current value."""

    def publish(self) -> None:
        """Record everything that is not recorded as it happens."""
        self._build.set(1, self._build_labels)
        self._set_gauges()

    async def _run(self) -> None:
        while True:
            try:
                self.publish()
            except Exception as error:
                self._errors.error("metrics could not be recorded", error)
            await asyncio.sleep(PUBLISH_SECONDS)


class EncoderMetrics(ReplicaMetrics):
    """Requests in progress, batch sizes and stage latencies of an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self._num_in_progress = 0
        self._in_progress = metrics.Gauge(
            "autoglm_encoder_requests_in_progress", "Requests in the encoder, waiting for a batch included."
        )
        self._sizes = metrics.Histogram("autoglm_encoder_batch_size", "Size of the request's batch.", _SIZES)
        self._stages = metrics.Histogram(
            "autoglm_encoder_stage_seconds", "Seconds of a request in each stage.", _SECONDS, ("stage",)
        )

    @contextmanager
    def request(self, caller: Caller) -> Iterator[None]:
        """Count a request as in progress while the block runs."""
        self._num_in_progress += 1
        try:
            with self.call(caller):
                yield
        finally:
            self._num_in_progress -= 1

    def batched(self, size: int) -> None:
        """Record the size of a batch that a request was in."""
        self._sizes.observe(size)

    def encoded(self, preprocess: float, queue: float, compute: float) -> None:
        """Record where a request's time went, in seconds."""
        for stage, seconds in (("preprocess", preprocess), ("queue", queue), ("compute", compute)):
            self._stages.observe(seconds, {"stage": stage})

    def _set_gauges(self) -> None:
        self._in_progress.set(self._num_in_progress)
