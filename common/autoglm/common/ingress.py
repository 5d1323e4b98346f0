"""What the ingress knows of each service, and what it says while a service has no replica.

Behind Ray Serve's HAProxy a request for an application without replicas falls back to a Python proxy,
which would hold it until a replica is back or the deadline passes. The functions below, named in the
Serve config, are called in that proxy as well as in the replicas: in the proxy they register handlers
that refuse at once, with a typed error that says when to try again.
"""

import os
from collections.abc import Callable
from typing import Any

import grpc
from grpc_status import rpc_status

from autoglm.common.errors import RETRY_SECONDS, MeshError, ModalityUnavailable, UpstreamUnavailable, to_status
from autoglm.v1 import decoder_pb2_grpc, speech_pb2_grpc, vision_pb2_grpc


def add_vision(servicer: Any, server: Any) -> None:
    """Register VisionService."""
    down = _encoder_down("vision")
    _add("autoglm.v1.VisionService", vision_pb2_grpc.add_VisionServiceServicer_to_server, servicer, server, down)


def add_speech(servicer: Any, server: Any) -> None:
    """Register SpeechService."""
    down = _encoder_down("speech")
    _add("autoglm.v1.SpeechService", speech_pb2_grpc.add_SpeechServiceServicer_to_server, servicer, server, down)


def add_decoder(servicer: Any, server: Any) -> None:
    """Register DecoderService."""
    down = UpstreamUnavailable("the decoder is starting or restarting; try again soon")
    _add("autoglm.v1.DecoderService", decoder_pb2_grpc.add_DecoderServiceServicer_to_server, servicer, server, down)


def stay_local() -> None:
    """Have this replica's gRPC port listen on loopback when AUTOGLM_LOOPBACK_ONLY is 1; Serve opens it to all."""
    if os.environ.get("AUTOGLM_LOOPBACK_ONLY") != "1":
        return
    from ray.serve._private import default_impl

    add = default_impl.add_grpc_address
    default_impl.add_grpc_address = lambda server, address: add(server, address.replace("[::]", "127.0.0.1"))


class Refusing:
    """A servicer that answers every method with the same error."""

    def __init__(self, error: MeshError) -> None:
        self._status = rpc_status.to_status(to_status(error))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._refuse

    async def _refuse(self, _request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(self._status.code, self._status.details, self._status.trailing_metadata)


def _encoder_down(name: str) -> MeshError:
    message = f"the {name} service is starting or restarting; try again soon"
    return ModalityUnavailable(message, retry_after=RETRY_SECONDS)


def _add(name: str, register: Callable[[Any, Any], None], servicer: Any, server: Any, down: MeshError) -> None:
    if _is_fallback_proxy(server):
        server.add_passthrough_service(name)
        servicer = Refusing(down)
    register(servicer, server)


def _is_fallback_proxy(server: Any) -> bool:
    """Return whether `server` is the proxy that HAProxy falls back to; a replica's own server is not."""
    owner = getattr(getattr(server, "service_handler_factory", None), "__self__", None)
    return os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" and type(owner).__name__ == "gRPCProxy"
