"""Polling the services."""

import asyncio
import gc
import warnings

from autoglm.common.testing import FakeMesh
from autoglm.gateway.health import MeshState
from autoglm.gateway.settings import Settings
from autoglm.gateway.upstream import Mesh

from ...waiting import turns


async def test_a_poll_that_is_cancelled_at_once_leaves_nothing_behind(mesh: FakeMesh) -> None:
    settings = Settings(serve_address=mesh.address)
    upstream = Mesh(settings)
    state = MeshState(upstream, None, settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for steps in range(40):
            polling = asyncio.create_task(state.poll())
            await turns(steps)
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)
        gc.collect()
    await upstream.close()
    assert [str(each.message) for each in caught if "never awaited" in str(each.message)] == []
