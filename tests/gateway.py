"""A second gateway for the services of a running mesh, with other settings."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from autoglm.cli.isolation import free_ports

from .mesh import Mesh
from .waiting import NET_SECONDS, eventually, is_answered


@contextmanager
def running_gateway(mesh: Mesh, **settings: str) -> Iterator[str]:
    """Yield the root of its HTTP API once it is ready, and stop it at the end."""
    (port,) = free_ports(1)
    services = {"serve_address": mesh.serve_address, "serve_token": mesh.serve_token}
    variables = {"host": "127.0.0.1", "http_port": str(port), "grpc_port": "0", **services, **settings}
    environment = os.environ | {f"AUTOGLM_{name.upper()}": value for name, value in variables.items()}
    process = subprocess.Popen([sys.executable, "-m", "autoglm.gateway.app"], env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: is_answered(f"{address}/health/ready"), "the gateway is ready")
        yield address
    finally:
        process.terminate()
        process.wait(NET_SECONDS)
