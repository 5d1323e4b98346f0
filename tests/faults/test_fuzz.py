"""A short run of `python -m tests.fuzz` on the real mesh: no death, no hang, nothing internal, nothing untyped."""

import asyncio

import grpc

from ..fuzz.run import explored, in_processes, run, through_the_doors
from ..fuzz.tally import FAULTS, Tally
from ..mesh import Mesh

CASES = 12  # of each kind
SEED = 1


def test_no_request_is_told_as_our_fault(mesh: Mesh) -> None:
    tally, replicas = Tally(SEED), {name: mesh.replica(name).pid for name in ("vision", "speech", "decoder")}
    explored(mesh.http_url, tally, examples=2)
    asyncio.run(_send(mesh, tally))
    assert tally.faults == []
    assert tally.total(*FAULTS, "503") == 0
    assert all(counted["OK"] > 0 for counted in tally.counts.values()), tally.table()
    assert {name: mesh.replica(name).pid for name in replicas} == replicas


async def _send(mesh: Mesh, tally: Tally) -> None:
    async with grpc.aio.insecure_channel(mesh.grpc_address) as channel, in_processes(SEED) as services:
        kinds = {**through_the_doors(mesh.http_url, channel, SEED), **services}
        await run(kinds, tally, lambda number: number < CASES)
