"""The gRPC services of the mesh, by application: how each is registered, called and described."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autoglm.v1 import decoder_pb2, decoder_pb2_grpc, speech_pb2, speech_pb2_grpc, vision_pb2, vision_pb2_grpc


@dataclass(frozen=True, slots=True)
class Service:
    """A gRPC service: its full name, what registers a servicer on a server, its client stub, and the request of its
    Describe method."""

    name: str
    register: Callable[[Any, Any], None]
    stub: Callable[[Any], Any]
    describe: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class EncoderService(Service):
    """The service of an encoder. The request of its Encode method has a field for the media, named as their kind, and
    the response of its Describe method a field `encoder`."""

    encode: Callable[..., Any]
    described: Callable[..., Any]


ENCODER_SERVICES: Mapping[str, EncoderService] = {
    "vision": EncoderService(
        "autoglm.v1.VisionService",
        vision_pb2_grpc.add_VisionServiceServicer_to_server,
        vision_pb2_grpc.VisionServiceStub,
        vision_pb2.VisionServiceDescribeRequest,
        vision_pb2.VisionServiceEncodeRequest,
        vision_pb2.VisionServiceDescribeResponse,
    ),
    "speech": EncoderService(
        "autoglm.v1.SpeechService",
        speech_pb2_grpc.add_SpeechServiceServicer_to_server,
        speech_pb2_grpc.SpeechServiceStub,
        speech_pb2.SpeechServiceDescribeRequest,
        speech_pb2.SpeechServiceEncodeRequest,
        speech_pb2.SpeechServiceDescribeResponse,
    ),
}
SERVICES: Mapping[str, Service] = {
    **ENCODER_SERVICES,
    "decoder": Service(
        "autoglm.v1.DecoderService",
        decoder_pb2_grpc.add_DecoderServiceServicer_to_server,
        decoder_pb2_grpc.DecoderServiceStub,
        decoder_pb2.DecoderServiceDescribeRequest,
    ),
}
