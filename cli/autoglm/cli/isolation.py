"""A place of its own for our Ray, apart from any other that runs on this machine.

Everything in which two clusters could meet is chosen here: the token, every port, HAProxy's files.
"""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from autoglm.cli.processes import StartError

LOOPBACK = "127.0.0.1"
INGRESS = 9000
FIRST, BLOCKS = 20_000, 100
SINGLE, REPLICAS = 20, 50
BLOCK = SINGLE + 2 * REPLICAS
_ELSEWHERE = {"RAY_ADDRESS", "RAY_NAMESPACE", "RAY_TMPDIR", "RAY_AUTH_TOKEN_PATH"}


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one mesh: Serve's gRPC ingress, and a block of neighbours for everything else."""

    ingress: int
    block: int

    @classmethod
    @contextmanager
    def reserve(cls) -> Iterator["Ports"]:
        """Give ports that are free and that no other mesh gets until the end; the ingress is `INGRESS` if it can be.

        Whoever listens on a block's first port owns the block, and whoever listens on the port before all blocks owns
        `INGRESS`: no two meshes can do either at a time. Blocks lie below the ports that systems hand out by
        themselves: Ray's processes take such ports by the dozen, also between our look and Serve's use. Raises
        StartError when no block is free.
        """
        with ExitStack() as guards:
            for block in range(FIRST, FIRST + BLOCKS * BLOCK, BLOCK):
                if _own(block, guards) and all(is_free(port) for port in range(block + 1, block + BLOCK)):
                    break
            else:
                raise StartError(f"no {BLOCK} neighbouring ports from {FIRST} on are free: stop what uses them")
            well_known = _own(FIRST - 1, guards) and is_free(INGRESS)
            yield cls(INGRESS if well_known else block + 1, block)

    @property
    def http(self) -> int:
        """Serve's HTTP ingress, for its own health checks."""
        return self.block + 2

    @property
    def metrics(self) -> int:
        """The services' metrics, in Prometheus' format."""
        return self.block + 3

    @property
    def agents(self) -> dict[str, int]:
        """The ports of Ray's agents, as its RayParams call them."""
        names = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
        return {name: self.block + 8 + i for i, name in enumerate(names)}


def _own(port: int, guards: ExitStack) -> bool:
    """Listen on `port` until `guards` close; return whether nobody else does."""
    try:
        guards.enter_context(socket.create_server((LOOPBACK, port)))
    except OSError:
        return False
    return True


def is_free(port: int) -> bool:
    """Return whether `port` can be listened on, at every address: some of Ray's processes do."""
    try:
        socket.create_server(("", port)).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Return different ports that are free on loopback, from those that systems hand out."""
    servers = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports: list[int] = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def environment(folder: Path, bundle: Path, ports: Ports) -> dict[str, str]:
    """Return what Ray and the replicas read from the environment, with HAProxy's files in `folder`."""
    http_replicas = ports.block + SINGLE
    grpc_replicas = http_replicas + REPLICAS
    inherited = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    return inherited | {
        "AUTOGLM_BUNDLE": str(bundle),
        "AUTOGLM_LOOPBACK_ONLY": "1",
        "HF_HUB_OFFLINE": "1",
        "MALLOC_ARENA_MAX": "2",
        "TRANSFORMERS_VERBOSITY": "error",
        # By default workers run at niceness 15 and starve beside any other load.
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # With no GPU reserved a replica still sees them all: devices are named, not handed out.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # A busy machine misses the 5 s defaults, and Serve then kills the proxy for ever.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        # One gateway is one connection; by default it could hold 100 streams.
        "RAY_SERVE_HAPROXY_H2_FE_MAX_CONCURRENT_STREAMS": "1024",
        "RAY_SERVE_HAPROXY_H2_BE_MAX_CONCURRENT_STREAMS": "1024",
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
