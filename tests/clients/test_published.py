"""Published clients, unmodified, do on the real mesh what docs/clients.md says they do: published/ has their tests."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from ..gateway import running_gateway
from ..mesh import Mesh
from ..published import CLIENTS, PublishedClient, failures, install, snippet

Results = Callable[[PublishedClient], Mapping[str, str]]
EACH = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


@pytest.fixture(scope="module")
def results(mesh: Mesh, base_url: str) -> Iterator[Results]:
    """What each client's tests say, which run together once."""
    install()
    with running_gateway(mesh, api_keys="secret") as locked:
        yield cache(lambda client: failures(client, base_url, f"{locked}/v1"))


@pytest.mark.parametrize(
    ("client", "name"),
    [(client, name) for client in CLIENTS for name in client.tests],
    ids=[f"{client.name}-{name}" for client in CLIENTS for name in client.tests],
)
def test_a_published_client_is_served(results: Results, client: PublishedClient, name: str) -> None:
    failure = results(client)[name]
    assert not failure, failure


@EACH
@pytest.mark.usefixtures("results")
def test_the_page_tells_how_to_ask(client: PublishedClient, base_url: str, tmp_path: Path) -> None:
    done = snippet(client, base_url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
