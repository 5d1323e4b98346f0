"""What the tests of faults share: a mesh that each of them leaves whole, and a hostile client."""

from collections.abc import Iterator

import pytest

from ..mesh import Mesh
from ..waiting import eventually
from .attacker import Attacker, running_attacker


@pytest.fixture
def whole(mesh: Mesh) -> Iterator[None]:
    """The test leaves the mesh as it found it."""
    yield
    eventually(mesh.is_whole, "the mesh is whole")


@pytest.fixture(scope="module")
def attacker(mesh: Mesh) -> Iterator[Attacker]:
    """A hostile client of the shared mesh."""
    with running_attacker(mesh.http_url, mesh.grpc_address) as running:
        yield running
