"""What both servers share: the parts that admit and answer a request, and how its end is counted and logged."""

import logging
import time
from dataclasses import dataclass

from autoglm.common.errors import MeshError
from autoglm.common.server import as_mesh_error
from autoglm.common.tracing import current_span
from autoglm.gateway.admission.admission import Admission
from autoglm.gateway.assistant import Assistant
from autoglm.gateway.context import RequestContext
from autoglm.gateway.drain import Drain
from autoglm.gateway.health import MeshState
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.readers import ReaderPool
from autoglm.gateway.settings import Settings

access = logging.getLogger("autoglm.gateway.access")


@dataclass(frozen=True, slots=True)
class Backend:
    """One gateway and its parts."""

    settings: Settings
    admission: Admission
    assistant: Assistant
    state: MeshState
    metrics: GatewayMetrics
    drain: Drain
    readers: ReaderPool

    def failed(self, error: BaseException) -> MeshError:
        """Count an error and return what the client may see of it."""
        known = as_mesh_error(error)
        self.metrics.failed(known)
        current_span().failed(known)
        return known


def log_request(context: RequestContext, route: str, status: object, level: int = logging.INFO) -> None:
    """Write a request's line in the access log: the tenant's name, sizes and hashes, and no content. The log adds the
    request's id."""
    took = (time.monotonic() - context.started) * 1000
    media = ",".join(context.media) or "-"
    line = "%s %s %.1fms tenant=%s in=%d media=%s"
    access.log(level, line, route, status, took, context.tenant.name, context.received, media)
