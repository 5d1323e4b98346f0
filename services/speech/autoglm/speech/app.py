"""The speech application of the mesh. Building it loads neither torch nor weights: replicas do."""

import logging
from typing import Any

from ray import serve

from autoglm.common.serve_app import EncoderReplica, application, load_servicer
from autoglm.common.server import Caller, authenticate, described, served
from autoglm.speech.settings import SpeechSettings
from autoglm.v1 import speech_pb2

logger = logging.getLogger("ray.serve")


class Speech(EncoderReplica):
    """autoglm.v1.SpeechService as Serve calls it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from autoglm.speech.servicer import SpeechServicer

        self._servicer = load_servicer("speech", SpeechServicer.load, SpeechSettings.model_validate(settings))
        description = self._servicer.describe()
        info, ability = description.encoder, "with" if description.transcribes else "without"
        super().__init__(self._servicer.threads, info)
        logger.info("speech encoder %s on %s, %s transcripts", info.revision, info.device, ability)

    async def Encode(
        self, request: speech_pb2.SpeechServiceEncodeRequest, grpc_context: Caller
    ) -> speech_pb2.SpeechServiceEncodeResponse:
        """Embed one recording."""
        if not authenticate(grpc_context):
            return speech_pb2.SpeechServiceEncodeResponse()
        with served(grpc_context, "autoglm.v1.SpeechService/Encode"), self._metrics.request(grpc_context):
            return await self._servicer.encode(request, grpc_context, self._metrics)

    async def Transcribe(
        self, request: speech_pb2.SpeechServiceTranscribeRequest, grpc_context: Caller
    ) -> speech_pb2.SpeechServiceTranscribeResponse:
        """Return the transcript of one recording."""
        if not authenticate(grpc_context):
            return speech_pb2.SpeechServiceTranscribeResponse()
        with served(grpc_context, "autoglm.v1.SpeechService/Transcribe"), self._metrics.request(grpc_context):
            return await self._servicer.transcribe(request, grpc_context, self._metrics)

    async def Describe(
        self, request: speech_pb2.SpeechServiceDescribeRequest, grpc_context: Caller
    ) -> speech_pb2.SpeechServiceDescribeResponse:
        """Return revision, width and limits."""
        return described(grpc_context, self._servicer.describe, speech_pb2.SpeechServiceDescribeResponse())


def build(settings: SpeechSettings) -> serve.Application:
    """Return the application for `args` of the Serve config."""
    return application(Speech, settings)
