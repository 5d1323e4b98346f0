"""Deploys deploy/serve.yaml by Ray's REST API, as KubeRay does, and asks a question: python -m tests.deployed FOLDER

It runs in a network namespace of its own, where all ports are free, with the variables of deploy/k8s, and prints the
answer.
"""

import fcntl
import json
import os
import secrets
import socket
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml

from autoglm.common.bundle import chosen_bundle

from .waiting import NET_SECONDS, eventually, is_answered

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "deploy/k8s/base"
TOKEN = secrets.token_hex(32)
DASHBOARD = "http://127.0.0.1:8265"
ELSEWHERE = "127.0.0.2"  # not the address of the node: what listens here listens at every address
GATEWAY = "http://127.0.0.1:8001"
PROBES = ("http://127.0.0.1:52365/api/healthz", "http://127.0.0.2:8000/-/healthz", "http://127.0.0.1:8080/metrics")


def raise_loopback() -> None:
    """Switch on loopback; ends the program where it is on already, since that network is not a new one."""
    up, get_flags, set_flags = 1, 0x8913, 0x8914  # IFF_UP, SIOCGIFFLAGS, SIOCSIFFLAGS
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        found = fcntl.ioctl(any_socket, get_flags, struct.pack("16sH14x", b"lo", 0))
        (flags,) = struct.unpack_from("H", found, 16)
        if flags & up:
            sys.exit("run this in a network namespace of its own: unshare --net")
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sH14x", b"lo", flags | up))


def variables(*files: str) -> dict[str, str]:
    """Return the variables in files of deploy/k8s/base."""
    lines = [line for file in files for line in (BASE / file).read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def start_ray(folder: Path, environment: dict[str, str]) -> None:
    """Start a head as KubeRay's pods do, but with CPUs for the replicas."""
    options = {
        "node-ip-address": "127.0.0.1",
        "temp-dir": str(folder),
        "num-cpus": "2",
        "object-store-memory": "134217728",
        "metrics-export-port": "8080",
        "dashboard-host": "0.0.0.0",
    }
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", *(f"--{name}={value}" for name, value in options.items())]
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)


def deploy() -> None:
    """Put the file, and return when every application runs; raises AssertionError with what Serve says of one."""
    address = f"{DASHBOARD}/api/serve/applications/"
    config = yaml.safe_load((ROOT / "deploy/serve.yaml").read_text())
    with httpx.Client(headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, timeout=NET_SECONDS) as http:
        eventually(lambda: http.get(f"{DASHBOARD}/api/version").status_code == 200, "the dashboard answers")
        http.put(address, json=config).raise_for_status()
        eventually(lambda: are_running(http.get(address), len(config["applications"])), "the applications run")


def are_running(status: httpx.Response, count: int) -> bool:
    """Return whether so many applications run, by Serve's own report; fails when one will not."""
    applications: dict[str, Any] = status.raise_for_status().json()["applications"]
    states = [application["status"] for application in applications.values()]
    assert "DEPLOY_FAILED" not in states, json.dumps(applications)
    return states == ["RUNNING"] * count


def ask() -> str:
    """Return the mesh's answer to a question."""
    question = {"model": "autoglm-phone-9b", "messages": [{"role": "user", "content": "你是谁?"}], "temperature": 0}
    response = httpx.post(f"{GATEWAY}/v1/chat/completions", json=question, trust_env=False, timeout=NET_SECONDS)
    return str(response.raise_for_status().json()["choices"][0]["message"]["content"])


def main(folder: Path) -> None:
    """Start Ray, deploy, probe, and ask through a gateway that reaches the ingress at another address."""
    raise_loopback()
    token = {"AUTOGLM_SERVE_TOKEN": secrets.token_hex(32), "AUTOGLM_BUNDLE": str(chosen_bundle())}
    rays = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "HOME": str(folder)}
    start_ray(folder, os.environ | variables("settings.env", "generated/ray.env") | rays | token)
    deploy()
    for probe in PROBES:
        eventually(partial(is_answered, probe), f"{probe} answers")
    doors = {"AUTOGLM_SERVE_ADDRESS": f"{ELSEWHERE}:9000", "AUTOGLM_HTTP_PORT": "8001", "AUTOGLM_HOST": "127.0.0.1"}
    subprocess.Popen([sys.executable, "-m", "autoglm.gateway.app"], env=os.environ | token | doors, stdout=sys.stderr)
    eventually(lambda: is_answered(f"{GATEWAY}/health/ready"), "the gateway is ready")
    print(json.dumps({"answer": ask()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
