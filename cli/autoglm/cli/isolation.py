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
from autoglm.common.ray_internals import SETUP_HOOK

LOOPBACK = "127.0.0.1"
INGRESS = 9000
FIRST, BLOCKS = 20_000, 100
SINGLE, REPLICAS = 20, 50
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
    return inherited | {
        "AUTOGLM_BUNDLE": str(bundle),
        "HF_HUB_OFFLINE": "1",
        "MALLOC_ARENA_MAX": "2",
        "TRANSFORMERS_VERBOSITY": "error",
        # By default workers run at niceness 15 and starve under any other load.
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Without clusters the address of Ray's node is that of loopback, as on macOS, and Ray listens there only.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        SETUP_HOOK: "autoglm.common.ray_internals.set_up_worker",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # A replica that reserves no GPU still sees all of them: its device is a setting.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # A replica that hangs does not end by being asked to.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        # Three checks in a row have to fail. What has died fails them at once; what is busy has 30 s to answer each.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # A busy machine misses the default of 5 s, and Serve then never starts the proxy again.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        # A gateway has one connection; the default allows 100 streams on it.
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
