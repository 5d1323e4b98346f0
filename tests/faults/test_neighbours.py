"""While one client sends what is hostile or heavy, the others get the same answers as ever."""

import pytest

from ..mesh import Mesh
from .attacker import Attacker
from .attacks.catalog import ATTACKS
from .neighbour import Stay, neighbour

pytestmark = pytest.mark.usefixtures("whole")
GAP = 10.0  # a net, far beyond what a stream waits on a loaded machine: the figures are measured, not tested


@pytest.mark.parametrize("name", ATTACKS)
def test_a_neighbour_gets_its_answers(mesh: Mesh, attacker: Attacker, name: str) -> None:
    before, stay = serving(mesh), Stay()
    attacker.prepare(name)
    with neighbour(mesh.http_url) as quiet, attacker.attacking(), quiet.asking(stay):
        quiet.stream(stay)
        while not attacker.seen and not stay.faults:  # at least one answer to the hostile client, too
            quiet.stream(stay)
    assert stay.faults == []
    assert serving(mesh) == before
    assert set(attacker.outcomes) <= ATTACKS[name].outcomes
    assert max(stay.gaps) < GAP
    assert max(stay.whole, default=0) < GAP


def serving(mesh: Mesh) -> dict[str, int]:
    """Return the processes that serve."""
    replicas = {name: mesh.replica(name).pid for name in ("vision", "speech", "decoder")}
    return replicas | {"gateway": mesh.gateway().pid}
