"""Whatever dies or hangs, clients get errors of the mesh's own, for as long as it takes to come back."""

import pytest

from autoglm.cli.supervision import LONGEST_DELAY

from ..mesh import Mesh
from ..waiting import eventually
from .attacks.sending import LATE, OK
from .causes import DEATHS, FAULTS, fault
from .clients import CUT_OFF, NO_CONNECTION
from .outages import measure

ENDING = {  # the mesh ends with them; Ray's raylet does with its agent
    "Ray's agent is killed",
    "Ray's raylet is killed",
    "Ray's control server is killed",
}
TYPED = {
    OK,
    "503 upstream_unavailable",
    "503 modality_unavailable",
    "504 deadline_exceeded",
    "UNAVAILABLE upstream_unavailable",
    "DEADLINE_EXCEEDED deadline_exceeded",
    LATE,  # by the clock of the client, a moment before the gateway's
}
TEXT_GOES_ON = {OK, LATE, "DEADLINE_EXCEEDED deadline_exceeded"}
WITHOUT_A_GATEWAY = {NO_CONNECTION, CUT_OFF}
UNNOTICED = ("the cache is killed", "the cache is full", "the cache is read-only")
TOLD = [fault.name for fault in FAULTS if fault.name not in ENDING.union(UNNOTICED)]


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("name", TOLD)
def test_a_fault_is_told_and_passes(mesh: Mesh, name: str) -> None:
    eventually(mesh.is_whole, "the mesh is whole")
    before = len(mesh.lines())
    outage = measure(mesh, fault(name))
    assert mesh.process.poll() is None, mesh.log.read_text()
    assert outage.recovered, outage
    assert outage.note != "not replaced; it went on at the end"
    allowed = TYPED | WITHOUT_A_GATEWAY if "gateway" in name else TYPED
    assert outage.http.keys() | outage.grpc.keys() <= allowed
    assert not [end for end in outage.streams if "early" in end or ("gateway" not in name and end == CUT_OFF)]
    if "vision" in name or "speech" in name:  # over gRPC text is asked for
        assert outage.grpc.keys() <= TEXT_GOES_ON
        assert "503 modality_unavailable" in outage.http
    said = mesh.lines()[before:]
    if "hangs" in name:
        assert any(") is suspended" in line for line in said)
    if "ten times" in name:
        assert outage.note == f"{DEATHS} times"
        assert any(f"ended by SIGKILL; starting it again in {LONGEST_DELAY:g} s" in line for line in said)
        assert sum("The gateway " in line and "starting it again" in line for line in said) == DEATHS
    eventually(lambda: not mesh.zombies(), "every orphan is reaped")


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("name", UNNOTICED)
def test_nobody_notices_what_becomes_of_the_cache(mesh: Mesh, name: str) -> None:
    eventually(mesh.is_whole, "the mesh is whole")
    outage = measure(mesh, fault(name))
    assert outage.http.keys() | outage.grpc.keys() == {OK}
    assert outage.streams.keys() == {"whole"}
