"""TLS on both servers, with certificates of clients and without, and certificates that are renewed."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme

from autoglm.cli.api import Api, ApiError
from autoglm.cli.serve import _speaks_tls
from autoglm.gateway import app
from autoglm.gateway.app import BoundPorts, running
from autoglm.gateway.settings import Settings
from autoglm.v1.model_pb2 import ListModelsRequest
from autoglm.v1.model_pb2_grpc import ModelServiceStub

from ...waiting import NET_SECONDS, eventually_async, soon
from .conftest import BUNDLE, FakeMesh
from .mounts import Mount
from .test_gateway_faults import read_until, start_process

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Authority:
    """A certificate authority, and what it has signed."""

    ca: trustme.CA
    server: trustme.LeafCert
    client: trustme.LeafCert

    @classmethod
    def new(cls) -> "Authority":
        ca = trustme.CA()
        return cls(ca, ca.issue_cert(HOST), ca.issue_cert("phone@example.org"))

    def files(self, **others: bytes) -> dict[str, bytes]:
        """Return what a gateway is given."""
        return {"cert": chain(self.server), "key": self.server.private_key_pem.bytes(), **others}

    def context(self, client: trustme.LeafCert | None = None) -> ssl.SSLContext:
        """Return what a client trusts, and shows."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if client is not None:
            client.configure_cert(context)
        return context

    def credentials(self, client: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
        """Return the same for gRPC."""
        shown = (None, None) if client is None else (client.private_key_pem.bytes(), chain(client))
        return grpc.ssl_channel_credentials(self.ca.cert_pem.bytes(), *shown)


def chain(leaf: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in leaf.cert_chain_pems)


@pytest.fixture(scope="module")
def ours() -> Authority:
    return Authority.new()


@pytest.fixture(scope="module")
def theirs() -> Authority:
    return Authority.new()


def settings(mount: Mount, mutual: bool = False) -> dict[str, Any]:
    """Return the settings of a gateway over TLS."""
    files = {"ssl_certfile": mount.path("cert"), "ssl_keyfile": mount.path("key")}
    return files | ({"ssl_ca_certs": mount.path("ca")} if mutual else {})


@asynccontextmanager
async def gateway(mesh: FakeMesh, **given: Any) -> AsyncIterator[BoundPorts]:
    bind: dict[str, Any] = {"host": HOST, "http_port": 0, "grpc_port": 0, "serve_address": mesh.address}
    async with running(Settings(**bind, poll_interval=0.05, drain_timeout=1.0, **given)) as ports:
        yield ports


async def over_http(ports: BoundPorts, context: ssl.SSLContext) -> bool:
    """Return whether a client reads an answer over HTTPS."""
    async with httpx.AsyncClient(verify=context, trust_env=False) as http:
        try:
            return (await http.get(f"https://{HOST}:{ports.http_port}/v1/models")).status_code == 200
        except httpx.TransportError:
            return False


async def over_grpc(ports: BoundPorts, credentials: grpc.ChannelCredentials) -> bool:
    """Return whether a client reads an answer over gRPC."""
    async with grpc.aio.secure_channel(f"{HOST}:{ports.grpc_port}", credentials) as channel:
        answer = ModelServiceStub(channel).ListModels(ListModelsRequest(), timeout=NET_SECONDS)
        code = await answer.code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    return bool(code == grpc.StatusCode.OK)


async def test_both_doors_speak_tls_and_nothing_else(
    mesh: FakeMesh, mount: Mount, ours: Authority, theirs: Authority
) -> None:
    mount.put(**ours.files())
    async with gateway(mesh, **settings(mount)) as ports:
        assert await over_http(ports, ours.context())
        assert await over_grpc(ports, ours.credentials())
        assert not await over_http(ports, theirs.context())
        assert not await over_grpc(ports, theirs.credentials())
        async with httpx.AsyncClient(trust_env=False) as http:
            with pytest.raises(httpx.TransportError):
                await http.get(f"http://{HOST}:{ports.http_port}/health/live")


async def test_clients_show_a_certificate_of_the_authority(
    mesh: FakeMesh, mount: Mount, ours: Authority, theirs: Authority
) -> None:
    mount.put(**ours.files(ca=ours.ca.cert_pem.bytes()))
    async with gateway(mesh, **settings(mount, mutual=True)) as ports:
        for client, enters in ((ours.client, True), (theirs.client, False), (None, False)):
            assert await over_http(ports, ours.context(client)) is enters
            assert await over_grpc(ports, ours.credentials(client)) is enters
        assert await asyncio.to_thread(_speaks_tls, HOST, ports.http_port)


async def test_a_renewed_authority_lets_its_own_clients_in_and_no_others(
    mesh: FakeMesh, mount: Mount, ours: Authority, theirs: Authority
) -> None:
    mount.put(**ours.files(ca=ours.ca.cert_pem.bytes()))
    async with gateway(mesh, **settings(mount, mutual=True)) as ports:
        assert await over_http(ports, ours.context(ours.client))
        mount.put(**ours.files(ca=theirs.ca.cert_pem.bytes()))

        async def taken() -> bool:
            return await over_http(ports, ours.context(theirs.client))

        await eventually_async(taken, "the new authority is taken")
        assert await over_grpc(ports, ours.credentials(theirs.client))
        assert not await over_http(ports, ours.context(ours.client))
        assert not await over_grpc(ports, ours.credentials(ours.client))


async def serial(port: int, context: ssl.SSLContext, protocol: str) -> str:
    """Return the serial number of the certificate that a server shows to a new connection."""
    context.set_alpn_protocols([protocol])
    _, writer = await asyncio.open_connection(HOST, port, ssl=context)
    shown = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    return str(shown)


async def test_a_renewed_certificate_is_taken_without_a_restart(mesh: FakeMesh, mount: Mount, ours: Authority) -> None:
    """In a process of its own, and so on uvloop."""
    renewed = Authority(ours.ca, ours.ca.issue_cert(HOST), ours.client)
    mount.put(**ours.files())
    files = {name.upper(): value for name, value in settings(mount).items()}
    process = await start_process(
        HOST=HOST, HTTP_PORT="0", GRPC_PORT="0", SERVE_ADDRESS=mesh.address, POLL_INTERVAL="0.05", **files
    )
    ports = [
        (port_in(await read_until(process, "gRPC services at 127.0.0.1:")), "h2"),
        (port_in(await read_until(process, "Starting FastAPI server at https://127.0.0.1:")), "http/1.1"),
    ]
    try:
        await read_until(process, "OpenAI-compatible endpoint enabled")
        before = [await serial(port, ours.context(), protocol) for port, protocol in ports]
        assert before[0] == before[1]
        mount.put(**renewed.files(key=ours.server.private_key_pem.bytes()))  # not its key
        assert "KEY_VALUES_MISMATCH" in await read_until(process, "reloading ssl failed, keeping the previous version")
        assert [await serial(port, ours.context(), protocol) for port, protocol in ports] == before
        async with httpx.AsyncClient(verify=ours.context(), trust_env=False) as http:
            metrics = await http.get(f"https://{HOST}:{ports[1][0]}/metrics")
        assert 'autoglm_last_reload_successful{setting="ssl"} 0.0' in metrics.text
        mount.put(**renewed.files())
        await read_until(process, "reloaded ssl")
        after = [await serial(port, ours.context(), protocol) for port, protocol in ports]
        assert after[0] == after[1] != before[0]
    finally:
        process.terminate()
        await soon(process.wait())


def port_in(line: str) -> int:
    found = re.search(rf"{re.escape(HOST)}:(\d+)", line)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"SSL_CERTFILE": "cert"}, "AUTOGLM_SSL_CERTFILE, AUTOGLM_SSL_KEYFILE: set both or neither"),
        ({"SSL_KEYFILE": "key"}, "AUTOGLM_SSL_CERTFILE, AUTOGLM_SSL_KEYFILE: set both or neither"),
        ({"SSL_CA_CERTS": "ca"}, "AUTOGLM_SSL_CA_CERTS: requires AUTOGLM_SSL_CERTFILE and AUTOGLM_SSL_KEYFILE"),
        ({"SSL_CERTFILE": "cert", "SSL_KEYFILE": "gone"}, "gone cannot be read (No such file or directory)"),
        ({"SSL_CERTFILE": "cert", "SSL_KEYFILE": "other"}, "(KEY_VALUES_MISMATCH)"),
        ({"SSL_CERTFILE": "cert", "SSL_KEYFILE": "locked"}, "in PEM and without a password"),
        ({"SSL_CERTFILE": "key", "SSL_KEYFILE": "key"}, "are not a certificate and its key, in PEM"),
        ({"SSL_CERTFILE": "cert", "SSL_KEYFILE": "key", "SSL_CA_CERTS": "key"}, "contains no certificates in PEM"),
        ({"SERVE_SSL_CA_CERTS": "gone"}, "gone cannot be read (No such file or directory)"),
        ({"SERVE_SSL_CA_CERTS": "key"}, "contains no certificates in PEM"),
        (
            {"SERVE_SSL_CA_CERTS": "cert", "SERVE_SSL_CERTFILE": "cert", "SERVE_SSL_KEYFILE": "other"},
            "(KEY_VALUES_MISMATCH)",
        ),
    ],
)
def test_what_cannot_be_used_stops_the_start_with_one_line(
    mount: Mount,
    ours: Authority,
    theirs: Authority,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: dict[str, str],
    told: str,
) -> None:
    mount.put(**ours.files(other=theirs.server.private_key_pem.bytes(), locked=locked(ours.server)))
    for name, file in given.items():
        monkeypatch.setenv(f"AUTOGLM_{name}", mount.path(file))
    assert app.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("autoglm gateway: ")
    assert told in line


def locked(leaf: trustme.LeafCert) -> bytes:
    """Return a key behind a password."""
    from cryptography.hazmat.primitives import serialization as form

    key = form.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"secret"))


async def test_the_commands_talk_to_it(
    mesh: FakeMesh, mount: Mount, ours: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount.put(**ours.files())
    async with gateway(mesh, **settings(mount)) as ports:
        api = Api(f"https://{HOST}:{ports.http_port}")
        with pytest.raises(ApiError, match=r"cannot be trusted .* SSL_CERT_FILE$"):
            await asyncio.to_thread(api.get, "/v1/models")
        authority = tmp_path / "authority.pem"
        ours.ca.cert_pem.write_to_path(str(authority))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        assert (await asyncio.to_thread(api.get, "/v1/models"))["data"][0]["id"] == BUNDLE
