"""The vision application of the mesh. Building it loads neither torch nor weights: replicas do."""

import logging
from typing import Any

from ray import serve

from autoglm.common.serve_app import EncoderReplica, application, load_servicer
from autoglm.common.server import Caller, authenticate, described, served
from autoglm.v1 import vision_pb2
from autoglm.vision.settings import VisionSettings

logger = logging.getLogger("ray.serve")


class Vision(EncoderReplica):
    """autoglm.v1.VisionService as Serve calls it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from autoglm.vision.servicer import VisionServicer

        self._servicer = load_servicer("vision", VisionServicer.load, VisionSettings.model_validate(settings))
        info = self._servicer.describe().encoder
        super().__init__(self._servicer.threads, info)
        logger.info("vision encoder %s on %s, int8 %s", info.revision, info.device, "on" if info.int8 else "off")

    async def Encode(
        self, request: vision_pb2.VisionServiceEncodeRequest, grpc_context: Caller
    ) -> vision_pb2.VisionServiceEncodeResponse:
        """Embed one image."""
        if not authenticate(grpc_context):
            return vision_pb2.VisionServiceEncodeResponse()
        with served(grpc_context, "autoglm.v1.VisionService/Encode"), self._metrics.request(grpc_context):
            return await self._servicer.encode(request, grpc_context, self._metrics)

    async def Describe(
        self, request: vision_pb2.VisionServiceDescribeRequest, grpc_context: Caller
    ) -> vision_pb2.VisionServiceDescribeResponse:
        """Return revision, width and limits."""
        return described(grpc_context, self._servicer.describe, vision_pb2.VisionServiceDescribeResponse())


def build(settings: VisionSettings) -> serve.Application:
    """Return the application for `args` of the Serve config."""
    return application(Vision, settings)
