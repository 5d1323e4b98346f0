"""The decoder application of the mesh. Building it loads neither torch nor weights: replicas do."""

from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.serve import metrics

from autoglm.common.serve_app import application, load_servicer, watch_replica
from autoglm.common.server import Caller, authenticate, served
from autoglm.decoder.settings import DecoderSettings
from autoglm.v1 import decoder_pb2


class Decoder:
    """autoglm.v1.DecoderService as Serve calls it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from autoglm.decoder.servicer import DecoderServicer

        self._servicer = load_servicer("decoder", DecoderServicer.load, DecoderSettings.model_validate(settings))
        self._running = metrics.Gauge("autoglm_num_requests_running", "Requests that are being generated.")
        self._waiting = metrics.Gauge("autoglm_num_requests_waiting", "Requests that wait for a slot.")
        self._usage = metrics.Gauge("autoglm_kv_cache_usage_perc", "Share of the cache that running requests use.")
        self._counters = {
            "prefix_queries": metrics.Counter("autoglm_prefix_cache_queries", "Prompt tokens looked up."),
            "prefix_hits": metrics.Counter("autoglm_prefix_cache_hits", "Prompt tokens found in the cache."),
            "preemptions": metrics.Counter("autoglm_num_preemptions", "Requests put back: the cache was full."),
        }
        self._counted = dict.fromkeys(self._counters, 0)
        watch_replica(self._servicer.threads)

    async def Generate(
        self, request: decoder_pb2.DecoderServiceGenerateRequest, grpc_context: Caller
    ) -> AsyncIterator[decoder_pb2.DecoderServiceGenerateResponse]:
        """Stream an answer."""
        if not authenticate(grpc_context):
            return
        with served(grpc_context, "autoglm.v1.DecoderService/Generate"):
            async for message in self._servicer.generate(request, grpc_context):
                yield message

    async def Embed(
        self, request: decoder_pb2.DecoderServiceEmbedRequest, grpc_context: Caller
    ) -> decoder_pb2.DecoderServiceEmbedResponse:
        """Make one vector of each part."""
        if not authenticate(grpc_context):
            return decoder_pb2.DecoderServiceEmbedResponse()
        with served(grpc_context, "autoglm.v1.DecoderService/Embed"):
            return await self._servicer.embed(request, grpc_context)

    async def Describe(
        self, request: decoder_pb2.DecoderServiceDescribeRequest, grpc_context: Caller
    ) -> decoder_pb2.DecoderServiceDescribeResponse:
        """Describe the decoder and how busy it is."""
        return self._servicer.describe() if authenticate(grpc_context) else decoder_pb2.DecoderServiceDescribeResponse()

    async def check_health(self) -> None:
        """Update the metrics; raises RuntimeError when the engine has stopped, so that Serve restarts the replica."""
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
    return application(Decoder, settings)
