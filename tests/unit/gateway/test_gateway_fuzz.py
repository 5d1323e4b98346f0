"""A short run of `python -m tests.fuzz` before the fakes: every case is answered, or refused as the client's own."""

from ...fuzz.run import run, through_the_doors
from ...fuzz.tally import FAULTS, Tally
from .conftest import Client

CASES = 60  # of each kind


async def test_no_request_is_told_as_our_fault(shared: Client) -> None:
    tally = Tally(seed=1)
    await run(through_the_doors(shared.url, shared.channel, tally.seed), tally, lambda number: number < CASES)
    assert tally.faults == []
    assert tally.total(*FAULTS, "503") == 0
    assert all(counted["OK"] > 0 for counted in tally.counts.values()), tally.table()
    assert all(counted["400"] + counted["415"] > 0 for counted in tally.counts.values()), tally.table()
