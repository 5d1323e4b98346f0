"""The services that Serve's ingress knows, and the error that it returns while a service has no replica.

With Ray Serve's HAProxy, a request for an application without replicas falls back to a Python proxy, which would hold
it until a replica is back or the deadline passes. The functions below are named in the Serve config, and Serve calls
them in that proxy as well as in the replicas. In the proxy they register handlers that refuse at once, with a typed
error that says when to try again.
"""

from collections.abc import Callable
from typing import Any

import grpc
from grpc_status import rpc_status

from autoglm.common.errors import RETRY_SECONDS, MeshError, ModalityUnavailable, UpstreamUnavailable, to_status
from autoglm.common.modalities import ApplicationName
from autoglm.common.ray_internals import is_fallback_proxy, pass_through
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


class RefusingServicer:
    """A servicer that answers every method with the same error."""

    def __init__(self, error: MeshError) -> None:
        self._status = rpc_status.to_status(to_status(error))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._refuse

    async def _refuse(self, _request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(self._status.code, self._status.details, self._status.trailing_metadata)


def _add(application: ApplicationName, servicer: Any, server: Any) -> None:
    service = SERVICES[application]
    if is_fallback_proxy(server):
        pass_through(server, service.name)
        servicer = RefusingServicer(_down(application))
    service.register(servicer, server)


def _down(application: ApplicationName) -> MeshError:
    """Return the error of an application without a replica."""
    if application == "decoder":
        return UpstreamUnavailable("the decoder is starting or restarting; try again soon")
    message = f"the {application} service is starting or restarting; try again soon"
    return ModalityUnavailable(message, retry_after=RETRY_SECONDS)
