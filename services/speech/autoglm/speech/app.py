"""The speech application of the mesh. Building it loads neither torch nor weights: replicas do."""

import logging
import os
from typing import Any

from ray import serve

from autoglm.common.ingress import stay_local
from autoglm.common.memory import give_back
from autoglm.common.server import Caller, let_in
from autoglm.speech.settings import SpeechSettings
from autoglm.v1 import speech_pb2

logger = logging.getLogger("ray.serve")


class Speech:
    """autoglm.v1.SpeechService as Serve calls it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch

        from autoglm.common.serve_metrics import EncoderMetrics
        from autoglm.speech.servicer import SpeechServicer

        stay_local()
        parsed = SpeechSettings.model_validate(settings)
        torch.set_num_threads(parsed.threads or max(1, (os.cpu_count() or 1) // 2))
        self._servicer = SpeechServicer.load(parsed)
        give_back()
        self._metrics = EncoderMetrics()
        said = self._servicer.describe()
        ability = "with" if said.transcribes else "without"
        logger.info("speech encoder %s on %s, %s transcripts", said.encoder.revision, said.encoder.device, ability)

    async def Encode(
        self, request: speech_pb2.SpeechServiceEncodeRequest, grpc_context: Caller
    ) -> speech_pb2.SpeechServiceEncodeResponse:
        """Embed one recording."""
        if not let_in(grpc_context):
            return speech_pb2.SpeechServiceEncodeResponse()
        with self._metrics.request():
            return await self._servicer.encode(request, grpc_context, self._metrics)

    async def Transcribe(
        self, request: speech_pb2.SpeechServiceTranscribeRequest, grpc_context: Caller
    ) -> speech_pb2.SpeechServiceTranscribeResponse:
        """Return what was said."""
        if not let_in(grpc_context):
            return speech_pb2.SpeechServiceTranscribeResponse()
        with self._metrics.request():
            return await self._servicer.transcribe(request, grpc_context, self._metrics)

    async def Describe(
        self, request: speech_pb2.SpeechServiceDescribeRequest, grpc_context: Caller
    ) -> speech_pb2.SpeechServiceDescribeResponse:
        """Tell revision, width and limits."""
        return self._servicer.describe() if let_in(grpc_context) else speech_pb2.SpeechServiceDescribeResponse()

    async def check_health(self) -> None:
        """Raise nothing while the forward thread answers; Serve restarts the replica after its timeout."""
        await self._servicer.check()


def build(settings: SpeechSettings) -> serve.Application:
    """Return the application for `args` of the Serve config."""
    deployment = serve.deployment(
        Speech,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=10,
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
    )
    return deployment.bind(settings.model_dump())
