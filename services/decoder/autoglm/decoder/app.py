"""The decoder application of the mesh. Building it loads neither torch nor weights: replicas do."""

from collections.abc import AsyncIterator
from typing import Any

from ray import serve

from autoglm.common.serve_app import application, load_servicer, watch_replica
from autoglm.common.server import Caller, authenticate, described, served
from autoglm.decoder.metrics import DecoderMetrics
from autoglm.decoder.scaling import autoscaling_stats
from autoglm.decoder.settings import DecoderSettings
from autoglm.v1 import decoder_pb2


class Decoder:
    """autoglm.v1.DecoderService as Serve calls it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from autoglm.decoder.servicer import DecoderServicer

        self._servicer = load_servicer("decoder", DecoderServicer.load, DecoderSettings.model_validate(settings))
        description = self._servicer.describe()
        self._metrics = DecoderMetrics(self._servicer.engine)
        self._metrics.start(
            bundle=description.bundle,
            revision=description.revision,
            device=description.device,
            engine=description.engine,
        )
        watch_replica(self._servicer.threads)

    async def Generate(
        self, request: decoder_pb2.DecoderServiceGenerateRequest, grpc_context: Caller
    ) -> AsyncIterator[decoder_pb2.DecoderServiceGenerateResponse]:
        """Stream an answer."""
        if not authenticate(grpc_context):
            return
        with served(grpc_context, "autoglm.v1.DecoderService/Generate"), self._metrics.call(grpc_context):
            async for message in self._servicer.generate(request, grpc_context):
                yield message

    async def Embed(
        self, request: decoder_pb2.DecoderServiceEmbedRequest, grpc_context: Caller
    ) -> decoder_pb2.DecoderServiceEmbedResponse:
        """Make one vector of each part."""
        if not authenticate(grpc_context):
            return decoder_pb2.DecoderServiceEmbedResponse()
        with served(grpc_context, "autoglm.v1.DecoderService/Embed"), self._metrics.call(grpc_context):
            return await self._servicer.embed(request, grpc_context)

    async def Describe(
        self, request: decoder_pb2.DecoderServiceDescribeRequest, grpc_context: Caller
    ) -> decoder_pb2.DecoderServiceDescribeResponse:
        """Describe the decoder and how busy it is."""
        return described(grpc_context, self._servicer.describe, decoder_pb2.DecoderServiceDescribeResponse())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what the autoscaling policy reads; Serve asks where the Serve config has an `autoscaling_config`."""
        return autoscaling_stats(self._servicer.engine.stats())

    async def check_health(self) -> None:
        """Raise RuntimeError when the engine has stopped or hangs, so that Serve restarts the replica."""
        self._servicer.check_health()


def build(settings: DecoderSettings) -> serve.Application:
    """Return the application for `args` of the Serve config."""
    return application(Decoder, settings)
