"""The vision application of the mesh. Building it loads neither torch nor weights: replicas do."""

import logging
import os
from typing import Any

from ray import serve

from autoglm.common.ingress import stay_local
from autoglm.common.memory import give_back
from autoglm.common.server import Caller, let_in
from autoglm.v1 import vision_pb2
from autoglm.vision.settings import VisionSettings

logger = logging.getLogger("ray.serve")


class Vision:
    """autoglm.v1.VisionService as Serve calls it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch

        from autoglm.common.serve_metrics import EncoderMetrics
        from autoglm.vision.servicer import VisionServicer

        stay_local()
        parsed = VisionSettings.model_validate(settings)
        torch.set_num_threads(parsed.threads or max(1, (os.cpu_count() or 1) // 2))
        self._servicer = VisionServicer.load(parsed)
        give_back()
        self._metrics = EncoderMetrics()
        info = self._servicer.describe().encoder
        logger.info("vision encoder %s on %s, int8 %s", info.revision, info.device, "on" if info.int8 else "off")

    async def Encode(
        self, request: vision_pb2.VisionServiceEncodeRequest, grpc_context: Caller
    ) -> vision_pb2.VisionServiceEncodeResponse:
        """Embed one image."""
        if not let_in(grpc_context):
            return vision_pb2.VisionServiceEncodeResponse()
        with self._metrics.request():
            return await self._servicer.encode(request, grpc_context, self._metrics)

    async def Describe(
        self, request: vision_pb2.VisionServiceDescribeRequest, grpc_context: Caller
    ) -> vision_pb2.VisionServiceDescribeResponse:
        """Tell revision, width and limits."""
        return self._servicer.describe() if let_in(grpc_context) else vision_pb2.VisionServiceDescribeResponse()

    async def check_health(self) -> None:
        """Raise nothing while the forward thread answers; Serve restarts the replica after its timeout."""
        await self._servicer.check()


def build(settings: VisionSettings) -> serve.Application:
    """Return the application for `args` of the Serve config."""
    deployment = serve.deployment(
        Vision,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=10,
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
    )
    return deployment.bind(settings.model_dump())
