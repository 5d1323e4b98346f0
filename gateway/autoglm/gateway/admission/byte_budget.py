"""The bytes of all requests in progress, before memory is full of them."""

from autoglm.common.errors import RateLimited
from autoglm.gateway.conversation import Call
from autoglm.gateway.metrics import Metrics
from autoglm.gateway.settings import Settings


class Memory:
    """Counts what requests hold in this process: what they sent, and the files that their URLs led to."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._most, self._metrics, self._held = settings.max_bytes_in_progress, metrics, 0

    def take(self, call: Call, size: int) -> None:
        """Count `size` more bytes of a request; raises RateLimited when memory is full of others."""
        if self._held + size > self._most:
            self._metrics.rejected(call.tenant, "memory")
            raise RateLimited("the gateway holds as many bytes of requests as it may; try again shortly")
        self._held += size
        call.received += size

    def release(self, call: Call) -> None:
        """Forget a request that has ended."""
        self._held -= call.received
