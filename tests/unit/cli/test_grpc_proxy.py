"""The HAProxy of a mesh is started again however it ends, with the newest certificate, and leaves no process."""

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import trustme

from autoglm.cli import processes
from autoglm.cli.grpc_proxy import GrpcProxy, SupervisedProxy
from autoglm.cli.isolation import free_ports
from autoglm.cli.supervision import Backoff
from autoglm.gateway.settings import Settings

from ...waiting import eventually

HOST = "127.0.0.1"


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir()
    return folder


def issued(authority: trustme.CA, folder: Path) -> None:
    """Write a new certificate and its key."""
    leaf = authority.issue_cert(HOST)
    leaf.cert_chain_pems[0].write_to_path(folder / "cert")
    leaf.private_key_pem.write_to_path(folder / "key")


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    issued(authority, tmp_path)
    return authority


@pytest.fixture
def settings(tmp_path: Path, authority: trustme.CA) -> Settings:
    (port,) = free_ports(1)
    return Settings(host=HOST, grpc_port=port, ssl_certfile=str(tmp_path / "cert"), ssl_keyfile=str(tmp_path / "key"))


@pytest.fixture
def child(
    settings: Settings, folder: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[SupervisedProxy]:
    monkeypatch.setattr(Backoff, "delay", lambda *_: 0.0)
    processes.adopt_orphans()
    proxy = GrpcProxy(settings, folder)
    child = SupervisedProxy(proxy, told.append)
    try:
        proxy.wait(child.process)
        yield child
    finally:
        child.process.terminate()
        child.process.wait()


def serial(settings: Settings, authority: trustme.CA) -> str:
    """Return the serial number of the certificate that a new connection is shown, empty for no connection."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    authority.configure_trust(context)
    with (
        suppress(OSError),
        socket.create_connection((HOST, settings.grpc_port)) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as line,
    ):
        assert line.selected_alpn_protocol() == "h2"
        return str((line.getpeercert() or {})["serialNumber"])
    return ""


def workers(child: SupervisedProxy) -> list[psutil.Process]:
    return psutil.Process(child.process.pid).children()


def is_back(child: SupervisedProxy, settings: Settings, authority: trustme.CA) -> bool:
    child.check()
    return serial(settings, authority) != ""


@pytest.mark.parametrize("part", ["master", "worker"])
def test_it_is_started_again_with_the_newest_certificate(
    child: SupervisedProxy, settings: Settings, authority: trustme.CA, folder: Path, told: list[str], part: str
) -> None:
    before, (worker,) = serial(settings, authority), workers(child)
    killed = psutil.Process(child.process.pid) if part == "master" else worker
    issued(authority, folder.parent)
    killed.kill()
    child.process.wait()
    eventually(lambda: is_back(child, settings, authority), "it listens again")
    assert serial(settings, authority) != before
    assert told[0].startswith("The gRPC proxy ")
    eventually(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "no worker is left over")
    processes.reap_orphans(but=[child.process.pid])


def test_a_renewed_certificate_is_taken(child: SupervisedProxy, settings: Settings, authority: trustme.CA) -> None:
    before, process = serial(settings, authority), child.process
    issued(authority, Path(settings.ssl_certfile).parent)

    def is_taken() -> bool:
        child.check()
        return serial(settings, authority) not in ("", before)

    eventually(is_taken, "the certificate is taken")
    assert child.process is process


def test_it_learns_none_of_our_secrets(child: SupervisedProxy) -> None:
    assert not os.environ.keys() & psutil.Process(child.process.pid).environ().keys() - {"PWD"}


def test_its_files_are_in_the_private_folder(child: SupervisedProxy, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"grpc-admin.sock", "grpc-ca.pem", "grpc-proxy.log", "grpc.pem"}
