"""Runs the services of compose.yaml without a container engine: what its settings mean, done by unshare and chroot.

Each has its own network, processes and mounts, a root mounted read-only, its user, no capabilities, and no way to gain
any. Networks are not kept apart, and there are no limits of memory and no seccomp profile. Needs root; call it in
a network and mounts of its own: `unshare --net --mount`.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
BUILDAH = ("buildah", "--storage-driver", "vfs")
PATIENCE_SECONDS = 300.0
SUBNET = "10.77.0"


def run(*command: str) -> str:
    """Return what a command prints; raises CalledProcessError if it fails."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compose() -> Mapping[str, Any]:
    """Return the services of compose.yaml, with the variables in it replaced."""
    services: Mapping[str, Any] = replaced(
        yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    )
    return services


def replaced(value: Any) -> Any:
    """Return a value with each `${NAME:-default}` in its texts replaced."""
    if isinstance(value, dict):
        return {key: replaced(each) for key, each in value.items()}
    if isinstance(value, list):
        return [replaced(each) for each in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: os.environ.get(found[1]) or found[2], value)
    return value


def environment(service: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that compose.yaml gives a service."""
    lines = [
        line
        for file in service.get("env_file", ())
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    own: Mapping[str, str] = service.get("environment", {})
    return {**dict(line.split("=", 1) for line in lines), **own}


@dataclass(frozen=True, slots=True)
class Image:
    """An image that buildah has built, mounted."""

    root: Path
    layers: Sequence[int]  # bytes, not compressed; the base comes first
    config: Mapping[str, Any]

    @classmethod
    @contextmanager
    def mounted(cls, name: str) -> Iterator[Self]:
        """Mount the image as the root of a new working container, inside the block."""
        found = json.loads(run(*BUILDAH, "inspect", "--type", "image", name))
        layers = [layer["size"] for layer in json.loads(found["Manifest"])["layers"]]
        container = run(*BUILDAH, "from", "--pull-never", name).strip()
        try:
            yield cls(Path(run(*BUILDAH, "mount", container).strip()), layers, found["Docker"]["config"])
        finally:
            run(*BUILDAH, "rm", container)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the image sets."""
        return dict(each.split("=", 1) for each in self.config["Env"])


@dataclass(slots=True)
class Network:
    """A bridge with one network namespace for each container."""

    addresses: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the bridge; the names of namespaces are kept where only this process sees them."""
        Path("/run/netns").mkdir(exist_ok=True)
        run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
        for command in (
            "link set lo up",
            "link add br0 type bridge",
            f"addr add {SUBNET}.1/24 dev br0",
            "link set br0 up",
        ):
            run("ip", *command.split())

    def join(self, name: str) -> None:
        """Make a namespace with an address."""
        self.addresses[name] = address = f"{SUBNET}.{10 + len(self.addresses)}"
        for command in (
            f"netns add {name}",
            f"link add to-{name} type veth peer name eth0 netns {name}",
            f"link set to-{name} master br0 up",
            f"-n {name} link set lo up",
            f"-n {name} addr add {address}/24 dev eth0",
            f"-n {name} link set eth0 up",
        ):
            run("ip", *command.split())

    def hosts(self, name: str) -> str:
        """Return /etc/hosts of a container."""
        lines = [f"{address} {each}" for each, address in self.addresses.items()]
        return "\n".join(["127.0.0.1 localhost", *lines, f"{self.addresses[name]} {name}", ""])


@dataclass(slots=True)
class Container:
    """One service, running."""

    name: str
    service: Mapping[str, Any]
    image: Image
    network: Network
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0

    def start(self) -> None:
        """Start its command."""
        hosts = self.folder / f"{self.name}.hosts"
        hosts.write_text(self.network.hosts(self.name))
        script = "\n".join(
            [*self._mounts(hosts), f"exec {self._restricted(self.service.get('command') or self.image.config['Cmd'])}"]
        )
        inside = ("unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "sh", "-euc", script)
        with (self.folder / f"{self.name}.log").open("wb") as log:
            self.started = time.monotonic()
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *inside],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def _mounts(self, hosts: Path) -> list[str]:
        """Return the commands that make its file system; the last of them makes its root read-only."""
        root = self.image.root
        files = [f"{ROOT / source}:{target}" for source, target in map(self._volume, self.service.get("volumes", ()))]
        binds = [each.split(":") for each in (*files, f"{hosts}:/etc/hosts")]
        return [
            f"hostname {self.name}",
            "mount --make-rprivate /",
            f"mount --bind {root} {root}",
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            f"mount -t tmpfs -o size={self.service.get('shm_size', '64m')},mode=1777 tmpfs {root}/dev/shm",
            *(f"mount -t tmpfs -o {options} tmpfs {root}{path}" for path, options in self._tmpfs()),
            *(f"mount --bind -o ro {source} {root}{target}" for source, target in binds),
            *([f"mount -o remount,bind,ro {root}"] if self.service["read_only"] else []),
        ]

    def _tmpfs(self) -> list[tuple[str, str]]:
        return [(each.partition(":")[0], each.partition(":")[2]) for each in self.service["tmpfs"]]

    @staticmethod
    def _volume(volume: str) -> tuple[str, str]:
        source, target, mode = volume.split(":")
        assert mode == "ro", volume
        return source, target

    def _restricted(self, command: Sequence[str]) -> str:
        """Return a shell command that runs another one as the service's user, without capabilities."""
        user, group = self.service["user"].split(":")
        assert self.service["cap_drop"] == ["ALL"]
        variables = self.image.environment | {"HOSTNAME": self.name} | environment(self.service)
        named = [f"{name}={value}" for name, value in variables.items()]
        drop = ["--reuid", user, "--regid", group, "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
        inner = ["cd", self.image.config["WorkingDir"]]
        start = ["sh", "-c", f"{shlex.join(inner)} && exec {shlex.join(command)}"]
        return shlex.join(
            ["env", "-i", *named, "chroot", str(self.image.root), "setpriv", *drop, "--no-new-privs", *start]
        )

    @property
    def first(self) -> psutil.Process:
        """Its process 1."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children()[0]

    def processes(self) -> list[psutil.Process]:
        """Return all of its processes."""
        return [self.first, *self.first.children(recursive=True)]

    def is_healthy(self) -> bool:
        """Return whether it runs and the image's health check succeeds."""
        assert self.process is not None
        if not psutil.Process(self.process.pid).children():  # not yet
            return False
        kind, *command = self.image.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        enter = ["nsenter", "--target", str(self.first.pid), "--mount", "--pid", "--net", "sh", "-c"]
        return subprocess.run([*enter, self._restricted(command)], capture_output=True).returncode == 0

    def wait(self) -> float:
        """Return the seconds from the start until it is healthy; raises SystemExit when that does not come."""
        assert self.process is not None
        while self.process.poll() is None and time.monotonic() < self.started + PATIENCE_SECONDS:
            if self.is_healthy():
                break
            time.sleep(0.25)
        else:
            raise SystemExit(f"{self.name} is not healthy:\n{self.log()[-4000:]}")
        return time.monotonic() - self.started

    def stop(self) -> float:
        """Ask it to end as compose would, and return how many seconds that took."""
        assert self.process is not None
        asked = time.monotonic()
        self.first.send_signal(signal.Signals[self.service.get("stop_signal", "SIGTERM")])
        self.process.wait(PATIENCE_SECONDS)
        return time.monotonic() - asked

    def kill(self) -> None:
        """End every process of it, if any is left."""
        if self.process is not None and self.process.poll() is None:
            for process in psutil.Process(self.process.pid).children():
                process.kill()  # process 1 takes the others with it
            self.process.wait()

    def log(self) -> str:
        """Return what it has printed."""
        return (self.folder / f"{self.name}.log").read_text(encoding="utf-8", errors="replace")
