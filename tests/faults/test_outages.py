"""Whatever dies or hangs, clients get errors of the mesh's own, for as long as it takes to come back."""

from collections.abc import Iterator

import pytest

from ..mesh import Mesh, running_mesh
from ..waiting import NET_SECONDS, eventually
from .attacks.sending import LATE, OK
from .causes import FAULTS, Fault
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
WITHOUT_A_GATEWAY = {NO_CONNECTION, CUT_OFF}
UNNOTICED = ("the cache is killed", "the cache is full", "the cache is read-only")
TOLD = [fault.name for fault in FAULTS if fault.name not in ENDING.union(UNNOTICED)]


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh that nothing else uses."""
    with running_mesh(tmp_path_factory.mktemp("fragile") / "serve.log") as running:
        yield running


def fault(name: str) -> Fault:
    """Return the fault of this name."""
    return next(fault for fault in FAULTS if fault.name == name)


@pytest.mark.parametrize("name", TOLD)
def test_a_fault_is_told_and_passes(fragile: Mesh, name: str) -> None:
    eventually(fragile.is_whole, "the mesh is whole")
    outage = measure(fragile, fault(name))
    assert fragile.process.poll() is None, fragile.log.read_text()
    assert outage.recovered, outage
    assert outage.note != "not replaced; it went on at the end"
    allowed = TYPED | WITHOUT_A_GATEWAY if "gateway" in name else TYPED
    assert outage.http.keys() | outage.grpc.keys() <= allowed
    assert not [end for end in outage.streams if "early" in end or ("gateway" not in name and end == CUT_OFF)]


@pytest.mark.parametrize("name", UNNOTICED)
def test_nobody_notices_what_becomes_of_the_cache(fragile: Mesh, name: str) -> None:
    eventually(fragile.is_whole, "the mesh is whole")
    outage = measure(fragile, fault(name))
    assert outage.http.keys() | outage.grpc.keys() == {OK}
    assert outage.streams.keys() == {"whole"}


def test_without_ray_the_mesh_ends_and_says_so(fragile: Mesh) -> None:
    eventually(fragile.is_whole, "the mesh is whole")
    fault("Ray's raylet is killed").cause(fragile)
    assert fragile.process.wait(NET_SECONDS) == 1
    assert "start the mesh again" in fragile.log.read_text()
