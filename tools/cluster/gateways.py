"""The gateways, and what they say of the requests that they have had: in their logs, and in their metrics."""

import json
import re
import secrets
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from google.rpc import code_pb2
from prometheus_client.parser import text_string_to_metric_families

from autoglm.common.errors import BY_REASON

from .network import GATEWAYS, INGRESS, address, on
from .programs import clean_environment, python, start, until

HTTP_PORT, GRPC_PORT = 8000, 50051
DRAIN_TIMEOUT = 60.0
KEY = "cluster-" + secrets.token_hex(8)
LINE = re.compile(r"(?P<route>(?:[A-Z]+ /\S+)|(?:\w+Service/\w+)) (?P<status>\S+) [\d.]+ms tenant=")

Counted = Counter[tuple[str, str, str]]  # by api, method and code, as in autoglm_requests_total


@dataclass(slots=True)
class Gateways:
    """Two gateways of one mesh, each on a machine of its own."""

    folder: Path
    redis_url: str
    serve_token: str
    _secret: str = field(default_factory=lambda: secrets.token_hex(16))
    _running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _lives: dict[str, int] = field(default_factory=dict)

    def start(self) -> None:
        """Start both, and return when they are ready."""
        for name in GATEWAYS:
            self.start_one(name)
        until(self.are_whole, "both gateways say that everything is up")

    def start_one(self, name: str) -> None:
        """Start a gateway; each start has a log of its own."""
        settings = {
            "API_KEYS": KEY,
            "CACHE_SECRET": self._secret,
            "DRAIN_TIMEOUT": str(DRAIN_TIMEOUT),
            "GRPC_PORT": str(GRPC_PORT),
            "HTTP_PORT": str(HTTP_PORT),
            "LOG_ENCODING": "JSON",
            "MAX_TIMEOUT": "300",
            "REDIS_URL": self.redis_url,
            "SERVE_ADDRESS": f"{INGRESS}:9000",
            "SERVE_TOKEN": self.serve_token,
        }
        # By default gRPC takes only the first of a name's addresses in /etc/hosts; of DNS it takes all.
        environment = clean_environment() | {"GRPC_DNS_RESOLVER": "native"}
        environment |= {f"AUTOGLM_{key}": value for key, value in settings.items()}
        self._lives[name] = self._lives.get(name, 0) + 1
        log = self.folder / f"{name}.{self._lives[name]}.log"
        self._running[name] = start(on(name, python(), "-m", "autoglm.gateway.app"), log, environment)

    def stop(self, name: str) -> int:
        """Send a gateway SIGTERM, and return its exit status when it has ended."""
        self._running[name].send_signal(signal.SIGTERM)
        return self._running[name].wait(2 * DRAIN_TIMEOUT)

    def are_whole(self) -> bool:
        """Return whether both say that every dependency is up."""
        return all(dependencies(name) == {"up"} for name in GATEWAYS)

    def logged(self) -> Counted:
        """Return what the access logs of all starts have, by api, method and code."""
        return Counter(entry[1] for entry in self.entries())

    def entries(self) -> Iterator[tuple[str, tuple[str, str, str]]]:
        """Yield each request in the access logs: its id, and api, method and code."""
        for log in sorted(self.folder.glob("gateway-*.log")):
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                if (entry := access(line)) is not None:
                    yield entry

    def counted(self, name: str) -> Counted:
        """Return what the metrics of a gateway's present life have, without what is not the API's."""
        return requests_total(httpx.get(f"{url(name)}/metrics", trust_env=False, timeout=30).text)

    def logged_in_this_life(self, name: str) -> Counted:
        """Return what the log of its present life has."""
        log = self.folder / f"{name}.{self._lives[name]}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return Counter(entry[1] for line in lines if (entry := access(line)) is not None)


def url(name: str) -> str:
    """Return the root of a gateway's HTTP API."""
    return f"http://{address(name)}:{HTTP_PORT}"


def dependencies(name: str) -> set[str]:
    """Return the states of a gateway's dependencies; none if it does not answer."""
    try:
        found = httpx.get(f"{url(name)}/health/ready", trust_env=False, timeout=10).json()
    except (httpx.HTTPError, ValueError):
        return set()
    return set(found["dependencies"].values())


def access(line: str) -> tuple[str, tuple[str, str, str]] | None:
    """Return the id of the request that a line of the access log is about, and its api, method and code."""
    try:
        logged = json.loads(line)
    except ValueError:
        return None
    if not isinstance(logged, dict) or logged.get("name") != "autoglm.gateway.access":
        return None
    found = LINE.match(logged["message"])
    assert found is not None, logged["message"]
    route, status = found["route"], found["status"]
    path = route.partition(" ")[2]  # a call has no verb before it
    counted = ("http", path, status) if path else ("grpc", route, grpc_code(status))
    return logged["request_id"], counted


def grpc_code(status: str) -> str:
    """Return the code of a call whose status the log has as `OK`, `CANCELLED` or the type of an error."""
    kind = BY_REASON.get(status.upper())
    return status if kind is None else code_pb2.Code.Name(kind.grpc_code)


def requests_total(text: str) -> Counted:
    """Return `autoglm_requests_total` of a scrape, without health, metrics and pages."""
    return Counter(
        {
            (sample.labels["api"], sample.labels["method"], sample.labels["code"]): int(sample.value)
            for family in text_string_to_metric_families(text)
            if family.name == "autoglm_requests"
            for sample in family.samples
            if sample.value and sample.labels["method"] != "other"
        }
    )
