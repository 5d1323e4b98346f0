"""TLS and mutual TLS, with real certificates on a real socket."""

from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme

from autoglm.client import UpstreamUnavailable

from .conftest import Connect, FakeMesh, serving


@dataclass(frozen=True, slots=True)
class Files:
    """An authority and what it signed, as PEM files."""

    authority: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]

    def credentials(self, mutual: bool) -> grpc.ServerCredentials:
        certificate, key = (path.read_bytes() for path in self.server)
        roots = self.authority.read_bytes() if mutual else None
        return grpc.ssl_server_credentials([(key, certificate)], roots, mutual)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    return Files(
        folder / "authority.pem",
        server=signed(authority, folder, "localhost"),
        client=signed(authority, folder, "phone@example.org"),
    )


def signed(authority: trustme.CA, folder: Path, name: str) -> tuple[Path, Path]:
    issued = authority.issue_cert(name)
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return certificate, key


def test_a_server_that_an_authority_vouches_for(files: Files, connect: Connect) -> None:
    with serving(FakeMesh(), files.credentials(mutual=False)) as mesh:
        client = connect(mesh.address, tls=files.authority, api_key="k1")
        assert client.chat("hi").text == "你好"
        assert [piece.text for piece in client.stream("hi")] == ["", "你", "好"]
        assert mesh.metadata[0]["authorization"] == "Bearer k1"


def test_a_server_that_nobody_knows(files: Files, connect: Connect, quick: None) -> None:
    with serving(FakeMesh(), files.credentials(mutual=False)) as mesh:
        for options in ({"tls": True}, {}):
            with pytest.raises(UpstreamUnavailable, match="cannot be reached"):
                connect(mesh.address, **options).chat("hi")
        assert mesh.requests == []


def test_a_server_that_wants_to_know_the_client(files: Files, connect: Connect, quick: None) -> None:
    with serving(FakeMesh(), files.credentials(mutual=True)) as mesh:
        assert connect(mesh.address, tls=files.authority, certificate=files.client).chat("hi").text == "你好"
        with pytest.raises(UpstreamUnavailable):
            connect(mesh.address, tls=files.authority).chat("hi")
        assert len(mesh.requests) == 1


def test_files_that_are_of_no_use(files: Files, connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect("localhost:1", tls=tmp_path / "none.pem")
    with pytest.raises(ValueError, match="without tls"):
        connect("localhost:1", certificate=files.client)
