"""The mesh that integration, client and fault tests share, started once a run."""

from collections.abc import Iterator

import grpc
import httpx
import pytest

from .asking import Asker
from .mesh import Mesh, running_mesh
from .waiting import NET_SECONDS


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The shared mesh, ready; tests that break it wait until it is whole again."""
    with running_mesh(tmp_path_factory.mktemp("mesh") / "serve.log") as running:
        yield running


@pytest.fixture(scope="session")
def base_url(mesh: Mesh) -> str:
    """The root of the OpenAI API."""
    return f"{mesh.http_url}/v1"


@pytest.fixture
def ask(mesh: Mesh) -> Iterator[Asker]:
    """Asks the mesh over HTTP."""
    with httpx.Client(base_url=mesh.http_url, timeout=NET_SECONDS, trust_env=False) as http:
        yield Asker(http)


@pytest.fixture
def channel(mesh: Mesh) -> Iterator[grpc.Channel]:
    """A channel to the public gRPC API."""
    with grpc.insecure_channel(mesh.grpc_address) as channel:
        yield channel
