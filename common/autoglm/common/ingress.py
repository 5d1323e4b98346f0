"""The services that Serve's ingress knows, and what it does while a service has no replica.

With Ray Serve's HAProxy, a request for an application without replicas falls back to a Python proxy, which would hold
it until a replica is back or the deadline passes. The functions below are named in the Serve config, and Serve calls
them in that proxy as well as in the replicas. In the proxy they register handlers that refuse at once while there is no
replica, with a typed error that says when to try again.

An encoder that is scaled to zero (`min_replicas: 0`) is not down. The proxy holds a request for it, and Serve starts a
replica. Describe, which gateways ask for all the time, is answered here instead, so that it starts nothing.
"""

from functools import partial
from typing import Any

from grpc_status import rpc_status

from autoglm.common.errors import RETRY_SECONDS, MeshError, ModalityUnavailable, UpstreamUnavailable, to_status
from autoglm.common.modalities import ApplicationName
from autoglm.common.ray_internals import is_fallback_proxy, without_replicas
from autoglm.common.server import authenticate
from autoglm.common.services import ENCODER_SERVICES, SERVICES
from autoglm.v1.embedding_pb2 import EncoderInfo


def add_vision(servicer: Any, server: Any) -> None:
    """Register VisionService."""
    _add("vision", servicer, server)


def add_speech(servicer: Any, server: Any) -> None:
    """Register SpeechService."""
    _add("speech", servicer, server)


def add_decoder(servicer: Any, server: Any) -> None:
    """Register DecoderService."""
    _add("decoder", servicer, server)


def _add(application: ApplicationName, servicer: Any, server: Any) -> None:
    service = SERVICES[application]
    if not is_fallback_proxy(server):
        service.register(servicer, server)
        return
    with without_replicas(server, application, partial(_absent, application)):
        service.register(servicer, server)


async def _absent(application: ApplicationName, request: Any, context: Any, scaled_to_zero: bool) -> bytes | None:
    """Refuse a call to an application without a replica; for an encoder that is scaled to zero, describe it or return
    None, which has Serve start a replica."""
    service = ENCODER_SERVICES.get(application)
    if service is None or not scaled_to_zero:
        status = rpc_status.to_status(to_status(_down(application)))
        await context.abort(status.code, status.details, status.trailing_metadata)
    elif not authenticate(context):
        return b""
    elif isinstance(request, type(service.describe())) and not request.start:
        described: bytes = service.described(encoder=EncoderInfo(idle=True)).SerializeToString()
        return described
    return None


def _down(application: ApplicationName) -> MeshError:
    """Return the error of an application without a replica."""
    if application == "decoder":
        return UpstreamUnavailable("the decoder is starting or restarting; try again soon")
    message = f"the {application} service is starting or restarting; try again soon"
    return ModalityUnavailable(message, retry_after=RETRY_SECONDS)
