"""The health check of the gateway's image against a real gateway."""

import asyncio
import sys
from pathlib import Path

import grpc
import trustme

from autoglm.common.testing import FakeMesh
from autoglm.gateway.app import running
from autoglm.gateway.settings import Settings

from ...waiting import eventually_async, soon
from .conftest import Client

CHECK = Path(__file__).resolve().parents[3] / "deploy/images/check_gateway.py"


async def status(port: int, **variables: str) -> tuple[int, str]:
    """Return the exit status of the check and what it prints."""
    environment = {"AUTOGLM_HTTP_PORT": str(port), "https_proxy": "http://127.0.0.1:9", **variables}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(CHECK), env=environment, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await soon(process.communicate())
    assert process.returncode is not None
    return process.returncode, printed.decode()


async def test_the_check_says_whether_the_gateway_is_ready(client: Client, mesh: FakeMesh) -> None:
    port = int(client.url.rpartition(":")[2])

    async def ready() -> bool:
        return (await client.http.get("/health/ready")).status_code == 200

    async def not_ready() -> bool:
        return not await ready()

    await eventually_async(ready, "the gateway is ready")
    assert await status(port) == (0, "")
    mesh.decoder.describe.code = grpc.StatusCode.UNAVAILABLE
    await eventually_async(not_ready, "the gateway is not ready")
    code, printed = await status(port)
    assert code == 1
    assert '"decoder":"down"' in printed


async def test_the_check_says_that_nothing_listens() -> None:
    code, printed = await status(1)
    assert code == 1
    assert "refused" in printed


async def test_the_check_speaks_tls_where_the_gateway_does(mesh: FakeMesh, tmp_path: Path) -> None:
    leaf = trustme.CA().issue_cert("gateway.example")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    leaf.private_key_pem.write_to_path(str(key))
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    tls = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
    bind = {"host": "127.0.0.1", "http_port": 0, "grpc_port": 0, "serve_address": mesh.address, "poll_interval": 0.05}
    async with running(Settings.model_validate(bind | tls)) as ports:

        async def healthy() -> bool:
            return (await status(ports.http_port, AUTOGLM_SSL_CERTFILE=str(certificate)))[0] == 0

        await eventually_async(healthy, "the check succeeds over TLS")
        assert (await status(ports.http_port))[0] == 1
