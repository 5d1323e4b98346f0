"""Load shedding by memory: a limit on the bytes of all requests in progress."""

from autoglm.common.errors import RateLimited
from autoglm.gateway.context import RequestContext
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.settings import Settings


class ByteBudget:
    """Counts the bytes that requests hold in this process: their bodies, and the files fetched from their URLs."""

    def __init__(self, settings: Settings, metrics: GatewayMetrics) -> None:
        self._limit, self._metrics, self._reserved = settings.max_bytes_in_progress, metrics, 0
        metrics.bytes_in_progress.set_function(lambda: self._reserved)

    def reserve(self, context: RequestContext, size: int) -> None:
        """Count `size` more bytes of a request; raises RateLimited when that exceeds the limit."""
        if self._reserved + size > self._limit:
            self._metrics.rejected(context.tenant, "memory")
            raise RateLimited("the gateway's request memory limit is reached; try again shortly")
        self._reserved += size
        context.received += size

    def give_back(self, context: RequestContext, size: int) -> None:
        """Give back `size` bytes of a request."""
        self._reserved -= size
        context.received -= size

    def release(self, context: RequestContext) -> None:
        """Give back all bytes of a request that has ended."""
        self._reserved -= context.received
