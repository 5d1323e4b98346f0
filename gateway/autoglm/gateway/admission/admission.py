"""Admission: who may use the gateway, and load shedding, which refuses what it has no capacity for.

A request gets a slot or a 429 at once; nothing queues here. Whatever makes the services work needs an `AdmittedSlot`,
so that neither server and no route can leave admission out.
"""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from autoglm.common.deadlines import Deadline
from autoglm.common.errors import MediaUnknown, RateLimited
from autoglm.gateway.admission.byte_budget import ByteBudget
from autoglm.gateway.admission.keys import Keys
from autoglm.gateway.admission.quota import Quota
from autoglm.gateway.context import RequestContext
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.settings import Settings


class NotAdmitted(RuntimeError):
    """A slot was used that admission never gave, or whose request has ended: a fault of this program."""


class AdmittedSlot:
    """One admitted request. Only `Admission.slot` makes one that can be used, and only while its block runs."""

    __slots__ = ("_budget", "_context", "_held")

    def __init__(self, context: RequestContext, budget: ByteBudget) -> None:
        self._context, self._budget, self._held = context, budget, False

    @property
    def context(self) -> RequestContext:
        """The admitted request; raises NotAdmitted."""
        if not self._held:
            raise NotAdmitted(f"request {self._context.request_id} has no slot")
        return self._context

    def reserve(self, size: int) -> None:
        """Reserve memory for `size` more bytes of the request; raises RateLimited when the budget is used up."""
        self._budget.reserve(self.context, size)

    def give_back(self, size: int) -> None:
        """Give back `size` of the bytes reserved."""
        self._budget.give_back(self.context, size)


class Admission:
    """Checks keys, and gives each request a slot within the limits of the gateway and of its tenant."""

    def __init__(
        self, settings: Settings, metrics: GatewayMetrics, keys: Keys, quota: Quota, budget: ByteBudget
    ) -> None:
        self._settings, self._metrics = settings, metrics
        self._keys, self._quota, self._budget = keys, quota, budget
        self._running = 0

    def authenticate(self, context: RequestContext, authorizations: Collection[str], timeout: float | None) -> None:
        """Check the key in the headers `authorization` and set tenant and deadline; raises AuthenticationFailed."""
        context.tenant = self._keys.tenant(authorizations)
        self._metrics.admits(context.tenant)
        settings = self._settings
        context.deadline = Deadline.after(
            settings.default_timeout if timeout is None else min(timeout, settings.max_timeout)
        )

    @asynccontextmanager
    async def slot(self, context: RequestContext) -> AsyncIterator[AdmittedSlot]:
        """Admit an authenticated request, and hold its slot inside the block. One that ends with MediaUnknown is not
        counted against the tenant's rate limit.

        Raises RateLimited when the gateway is at capacity or a limit of the tenant is reached.
        """
        if self._running >= self._settings.max_concurrent_requests:
            self._metrics.rejected(context.tenant, "capacity")
            raise RateLimited("the gateway is at capacity; try again shortly")
        slot = AdmittedSlot(context, self._budget)
        self._count(1)
        try:
            with self._quota.slot(context.tenant):
                await self._quota.spend(context)
                slot._held = True
                yield slot
        except MediaUnknown:
            await self._quota.give_back(context.tenant)
            raise
        finally:
            slot._held = False
            self._budget.release(context)
            self._count(-1)

    def _count(self, change: int) -> None:
        self._running += change
        self._metrics.in_progress.set(self._running)
