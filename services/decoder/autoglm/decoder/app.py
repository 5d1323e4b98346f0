"""The decoder application of the mesh. Building it loads neither torch nor weights: replicas do."""

import logging
import os
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.serve import metrics

from autoglm.common.ingress import stay_local
from autoglm.common.memory import give_back
from autoglm.common.server import Caller, let_in
from autoglm.decoder.settings import DecoderSettings
from autoglm.v1 import decoder_pb2

logger = logging.getLogger("ray.serve")


@serve.deployment(name="Decoder", health_check_period_s=5, health_check_timeout_s=30, graceful_shutdown_timeout_s=10)
class Decoder:
    """autoglm.v1.DecoderService as Serve calls it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch

        from autoglm.decoder.servicer import DecoderServicer

        stay_local()
        parsed = DecoderSettings.model_validate(settings)
        torch.set_num_threads(parsed.threads or max(1, (os.cpu_count() or 1) // 2))
        self._servicer = DecoderServicer.load(parsed)
        give_back()
        self._running = metrics.Gauge("autoglm_num_requests_running", "Requests being generated now.")
        self._waiting = metrics.Gauge("autoglm_num_requests_waiting", "Requests waiting for a place.")
        self._usage = metrics.Gauge("autoglm_kv_cache_usage_perc", "Share of the cache that running requests hold.")
        self._counters = {
            "prefix_queries": metrics.Counter("autoglm_prefix_cache_queries", "Prompt tokens looked for in the cache."),
            "prefix_hits": metrics.Counter("autoglm_prefix_cache_hits", "Prompt tokens found in the prefix cache."),
            "preemptions": metrics.Counter("autoglm_num_preemptions", "Requests put back: the cache was full."),
        }
        self._counted = dict.fromkeys(self._counters, 0)

    async def Generate(
        self, request: decoder_pb2.DecoderServiceGenerateRequest, grpc_context: Caller
    ) -> AsyncIterator[decoder_pb2.DecoderServiceGenerateResponse]:
        """Stream an answer."""
        if not let_in(grpc_context):
            return
        async for message in self._servicer.generate(request, grpc_context):
            yield message

    async def Embed(
        self, request: decoder_pb2.DecoderServiceEmbedRequest, grpc_context: Caller
    ) -> decoder_pb2.DecoderServiceEmbedResponse:
        """Make one vector of each part."""
        if not let_in(grpc_context):
            return decoder_pb2.DecoderServiceEmbedResponse()
        return await self._servicer.embed(request, grpc_context)

    async def Describe(
        self, request: decoder_pb2.DecoderServiceDescribeRequest, grpc_context: Caller
    ) -> decoder_pb2.DecoderServiceDescribeResponse:
        """Tell what the decoder is and how busy it is."""
        return self._servicer.describe() if let_in(grpc_context) else decoder_pb2.DecoderServiceDescribeResponse()

    async def check_health(self) -> None:
        """Raise when the engine's thread has ended, so that Serve restarts the replica."""
        stats = self._servicer.engine.stats()
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._usage.set(stats.cache_usage)
        for name, counter in self._counters.items():
            if (more := getattr(stats, name) - self._counted[name]) > 0:
                counter.inc(more)
                self._counted[name] += more
        if not self._servicer.engine.alive():
            raise RuntimeError("the engine's thread has ended")


def build(settings: DecoderSettings) -> serve.Application:
    """Return the application for `args` of the Serve config."""
    deployment = Decoder.options(  # type: ignore[attr-defined]
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
    )
    return deployment.bind(settings.model_dump())
