"""Ray: a head without replicas and two nodes with faked GPUs, deployed to by Ray's REST API as KubeRay does."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from autoglm.common.bundle import chosen_bundle

from .network import DECODER, ENCODERS, HEAD, address, on
from .programs import clean_environment, run, script, until

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "deploy/k8s/base"
DASHBOARD = f"http://{address(HEAD)}:8265"
DRAIN_SECONDS = 5  # that a replica stays reachable after its end began; Serve's default is 30
GPUS = {HEAD: 0, ENCODERS: 2, DECODER: 1}
ENCODER_OPTIONS = {"num_cpus": 0.5, "num_gpus": 0.25, "label_selector": {"autoglm.dev/role": ENCODERS}}
# Two replicas of each: the encoders on one node, the decoders on two. Like the overlay two-24g, they have no room for a
# surge.
DEPLOYMENTS: Mapping[str, Mapping[str, Any]] = {
    "vision": {"name": "Vision", "num_replicas": 2, "ray_actor_options": ENCODER_OPTIONS},
    "speech": {"name": "Speech", "num_replicas": 2, "ray_actor_options": ENCODER_OPTIONS},
    "decoder": {
        "name": "Decoder",
        "num_replicas": 2,
        "max_replicas_per_node": 1,
        "ray_actor_options": {"num_cpus": 0.5, "num_gpus": 1},
    },
}
REPLICAS = {name: int(options["num_replicas"]) for name, options in DEPLOYMENTS.items()}


def variables(*files: str) -> dict[str, str]:
    """Return the variables in files of deploy/k8s/base."""
    lines = [line for file in files for line in (BASE / file).read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@dataclass(slots=True)
class RayCluster:
    """The nodes and what is deployed on them; `token` is what the services ask gateways for."""

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    _ray_token: str = field(default_factory=lambda: secrets.token_hex(32))
    _versions: dict[str, int] = field(default_factory=dict)

    def start(self) -> None:
        """Start the head and the nodes."""
        options = {
            "node-ip-address": address(HEAD),
            "temp-dir": str(self.folder / "ray"),
            "num-cpus": "0",
            "dashboard-host": "0.0.0.0",
        }
        self._ray(HEAD, "--head", **options)
        for node in (ENCODERS, DECODER):
            self.start_node(node)

    def start_node(self, node: str) -> None:
        """Start a node and join it to the head."""
        labels = f"autoglm.dev/role={node}"
        options = {"address": f"{address(HEAD)}:6379", "node-ip-address": address(node), "labels": labels}
        self._ray(node, **options, **{"num-cpus": "4"})

    def _ray(self, node: str, *flags: str, **options: str) -> None:
        shared = {
            "num-gpus": str(GPUS[node]),
            "object-store-memory": "134217728",
            "metrics-export-port": "8080",
        }
        named = [f"--{name}={value}" for name, value in (options | shared).items()]
        run(*on(node, script("ray"), "start", *flags, *named), environment=self._environment())

    def _environment(self) -> dict[str, str]:
        own = self.folder / "h"  # Serve adds the node's id, and a socket's path has at most 97 characters
        own.mkdir(exist_ok=True)
        apart = {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(own / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(own / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(own / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(own),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(own / "server-state"),
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_SECONDS),
        }
        secret = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._ray_token,
            "AUTOGLM_SERVE_TOKEN": self.token,
            "AUTOGLM_BUNDLE": str(chosen_bundle()),
            "HOME": str(self.folder),
            # The GPUs are faked: torch must not look for them.
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
        return clean_environment() | variables("settings.env", "generated/ray.env") | apart | secret

    def deploy(self) -> None:
        """Put the Serve config, and return when all replicas run."""
        until(self._is_up, "the dashboard answers")
        self._put()
        until(self.is_whole, f"all replicas run: {DASHBOARD}")

    def redeploy(self, application: str) -> None:
        """Change what is deployed of an application, so that Serve replaces its replicas."""
        self._versions[application] = self._versions.get(application, 0) + 1
        self._put()

    def _put(self) -> None:
        config = yaml.safe_load((ROOT / "deploy/serve.yaml").read_text())
        for application in config["applications"]:
            name = application["name"]
            # A limit that nothing here reaches: only another value makes another version.
            changed = {"max_queued_requests": 64 + self._versions.get(name, 0)}
            gpus = DEPLOYMENTS[name]["ray_actor_options"]["num_gpus"]
            application["args"] |= {"num_gpus": gpus, "threads": 1} | changed
            application["deployments"] = [DEPLOYMENTS[name]]
        with self._http() as http:
            answer = http.put(f"{DASHBOARD}/api/serve/applications/", json=config)
        if not answer.is_success:
            raise RuntimeError(f"Serve refuses the config with status {answer.status_code}: {answer.text}")

    def replicas(self) -> dict[str, list[str]]:
        """Return the ids of the replicas that run, by application."""
        with self._http() as http:
            found = http.get(f"{DASHBOARD}/api/serve/applications/").raise_for_status().json()["applications"]
        return {
            name: [
                replica["replica_id"]
                for deployment in application["deployments"].values()
                for replica in deployment["replicas"]
                if replica["state"] == "RUNNING"
            ]
            for name, application in found.items()
            if application["status"] == "RUNNING"
        }

    def is_whole(self) -> bool:
        """Return whether Serve says that all replicas of all applications run."""
        try:
            found = self.replicas()
        except httpx.HTTPError:
            return False
        return {name: len(ids) for name, ids in found.items()} == REPLICAS

    def replica(self, application: str) -> psutil.Process:
        """Return the process of one of an application's replicas."""
        return process(f"ray::ServeReplica:{application}:")

    def _is_up(self) -> bool:
        try:
            with self._http() as http:
                return http.get(f"{DASHBOARD}/api/version").is_success
        except httpx.HTTPError:
            return False

    def _http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self._ray_token}"}
        return httpx.Client(headers=headers, trust_env=False, timeout=60)


def process(part: str) -> psutil.Process:
    """Return the first process with `part` in its command line; raises RuntimeError if there is none."""
    for each in psutil.process_iter(["cmdline"]):
        if part in " ".join(each.info["cmdline"] or ()):
            return each
    raise RuntimeError(f"no process has {part} in its command line")
