"""Keeps our Ray apart from any other Ray cluster on this machine.

Everything that two clusters could share is chosen here: the token, all ports, HAProxy's files.
"""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from autoglm.cli.processes import StartError
from autoglm.common.deadlines import max_timeout_of
from autoglm.common.ray_environment import ray_environment
from autoglm.common.ray_internals import SETUP_HOOK

LOOPBACK = "127.0.0.1"
INGRESS = 9000
FIRST, BLOCKS = 20_000, 12
# A port is not used again until no answer of its last replica can run (RAY_SERVE_PORT_QUARANTINE_S): with the longest
# answer of an hour, one replica can start every 7 s.
SINGLE, REPLICAS = 20, 500
BLOCK = SINGLE + 2 * REPLICAS
_ELSEWHERE = {"RAY_ADDRESS", "RAY_NAMESPACE", "RAY_TMPDIR", "RAY_AUTH_TOKEN_PATH"}


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one mesh: Serve's gRPC ingress, and a block of consecutive ports for everything else."""

    ingress: int
    block: int

    @classmethod
    @contextmanager
    def reserve(cls) -> Iterator["Ports"]:
        """Give free ports that no other mesh gets inside the block; the ingress is at `INGRESS` if that is free.

        A mesh owns a block of ports while it listens on the block's first port, and it owns `INGRESS` while it listens
        on the port before all blocks. The blocks are below the ephemeral ports of the system: Ray's processes take
        those by the dozen, also between this check and Serve's use. Raises StartError if no block is free.
        """
        with ExitStack() as guards:
            for block in range(FIRST, FIRST + BLOCKS * BLOCK, BLOCK):
                if _own(block, guards) and all(is_free(port) for port in range(block + 1, block + BLOCK)):
                    break
            else:
                raise StartError(f"no {BLOCK} consecutive ports from {FIRST} on are free: stop what uses them")
            well_known = _own(FIRST - 1, guards) and is_free(INGRESS)
            yield cls(INGRESS if well_known else block + 1, block)

    @property
    def http(self) -> int:
        """Serve's HTTP ingress, which only its own health checks use."""
        return self.block + 2

    @property
    def metrics(self) -> int:
        """The services' metrics, in the Prometheus format."""
        return self.block + 3

    @property
    def agents(self) -> dict[str, int]:
        """The ports of Ray's agents, by their names in RayParams."""
        names = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
        return {name: self.block + 8 + i for i, name in enumerate(names)}


def _own(port: int, guards: ExitStack) -> bool:
    """Listen on `port` until `guards` close; return whether that worked."""
    try:
        guards.enter_context(socket.create_server((LOOPBACK, port)))
    except OSError:
        return False
    return True


def is_free(port: int) -> bool:
    """Return whether `port` is free at all addresses, since some of Ray's processes listen at all of them."""
    try:
        socket.create_server(("", port)).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Return `count` different ephemeral ports that are free on loopback."""
    servers = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports: list[int] = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def environment(folder: Path, bundle: Path, ports: Ports) -> dict[str, str]:
    """Return the environment of Ray and the replicas, with HAProxy's files in `folder`."""
    http_replicas = ports.block + SINGLE
    grpc_replicas = http_replicas + REPLICAS
    inherited = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    own = {
        "AUTOGLM_BUNDLE": str(bundle),
        # Without clusters the address of Ray's node is that of loopback, as on macOS, and Ray listens there only.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        SETUP_HOOK: "autoglm.common.ray_internals.set_up_worker",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # A replica that reserves no GPU still sees all of them: its device is a setting.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.block + 4),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.block + 5),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http_replicas),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http_replicas + REPLICAS - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc_replicas),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc_replicas + REPLICAS - 1),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.block + 6),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.block + 7),
    }
    return inherited | ray_environment(max_timeout_of(os.environ)) | own
