"""The services that Serve's ingress knows, and the error that it returns while a service has no replica.

With Ray Serve's HAProxy, a request for an application without replicas falls back to a Python proxy, which would hold
it until a replica is back or the deadline passes. The functions below are named in the Serve config, and Serve calls
them in that proxy as well as in the replicas. In the proxy they register handlers that refuse at once while there is no
replica, with a typed error that says when to try again.
"""

from functools import partial
from typing import Any

import grpc
from grpc_status import rpc_status

from autoglm.common.errors import RETRY_SECONDS, MeshError, ModalityUnavailable, UpstreamUnavailable, to_status
from autoglm.common.modalities import ApplicationName
from autoglm.common.ray_internals import is_fallback_proxy, refusing_without_replicas
from autoglm.common.services import SERVICES


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
    with refusing_without_replicas(server, application, partial(_refuse, _down(application))):
        service.register(servicer, server)


async def _refuse(error: MeshError, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)


def _down(application: ApplicationName) -> MeshError:
    """Return the error of an application without a replica."""
    if application == "decoder":
        return UpstreamUnavailable("the decoder is starting or restarting; try again soon")
    message = f"the {application} service is starting or restarting; try again soon"
    return ModalityUnavailable(message, retry_after=RETRY_SECONDS)
