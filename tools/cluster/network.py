"""The machines: a network namespace each, with an address on one bridge. Nothing of them outlives their processes.

`isolate` starts a program in namespaces of its own for network, mounts and processes, so that whatever ends it (Ctrl-C,
SIGKILL, an error) takes every process, namespace, interface and file of the cluster with it.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from .programs import kill, run

SUBNET = "10.77.0"
CLIENTS = f"{SUBNET}.1"
HEAD, ENCODERS, DECODER = "head", "encoders", "decoder"
GATEWAYS = ("gateway-1", "gateway-2")
REDIS = "redis"
MACHINES = {HEAD: 10, ENCODERS: 11, DECODER: 12, GATEWAYS[0]: 21, GATEWAYS[1]: 22, REDIS: 31}
INGRESS = "services"  # the name of the nodes that run replicas, as a headless Service has it


def address(machine: str) -> str:
    """Return the address of a machine."""
    return f"{SUBNET}.{MACHINES[machine]}"


def isolate(arguments: Sequence[str]) -> int:
    """Run `python -m tools.cluster --inside FOLDER …` in namespaces of its own; return its exit status."""
    flags = ("--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child")
    with tempfile.TemporaryDirectory(prefix="mesh-", dir="/tmp") as folder:
        inner = (sys.executable, "-m", "tools.cluster", "--inside", folder, *arguments)
        process = subprocess.Popen(["unshare", *flags, *inner])
        signal.signal(signal.SIGTERM, lambda *_: _terminate(process.pid))  # so that the folder is removed
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the program inside gets it too, and ends
                continue


def _terminate(unshare: int) -> None:
    """Pass SIGTERM on to the program inside; `unshare` itself ignores it."""
    for child in psutil.Process(unshare).children():
        child.terminate()


def become_child() -> None:
    """Go on in a child of this process, the first one of its namespace, which adopts orphans until the child ends."""
    child = os.fork()
    if child == 0:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    while True:
        ended, status = os.wait()
        if ended == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def make_machines(folder: Path) -> None:
    """Make the bridge and the machines; call it in the namespaces that `isolate` makes."""
    hosts = [f"{address(machine)} {machine}" for machine in MACHINES]
    hosts += [f"{address(node)} {INGRESS}" for node in (ENCODERS, DECODER)]
    for place in (str(folder), "/dev/shm", "/run"):
        run("mount", "-t", "tmpfs", "tmpfs", place)
    Path("/run/netns").mkdir()
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
    run("mount", "--bind", str(folder / "hosts"), "/etc/hosts")
    for command in (
        "link set lo up",
        "link add br0 type bridge",
        f"addr add {CLIENTS}/24 dev br0",
        "link set br0 up",
    ):
        run("ip", *command.split())
    for machine in MACHINES:
        _make(machine)


def _make(machine: str) -> None:
    for command in (
        f"netns add {machine}",
        f"link add to-{machine} type veth peer name eth0 netns {machine}",
        f"link set to-{machine} master br0 up",
        f"-n {machine} link set lo up",
        f"-n {machine} addr add {address(machine)}/24 dev eth0",
        f"-n {machine} link set eth0 up",
    ):
        run("ip", *command.split())


def on(machine: str, *command: str) -> list[str]:
    """Return the command that runs another one on a machine."""
    return ["ip", "netns", "exec", machine, *command]


def lose_power(machine: str) -> None:
    """End a machine as a power failure does: nobody is told, no connection is closed."""
    run("ip", "link", "set", f"to-{machine}", "down")
    kill(processes(machine))


def processes(machine: str) -> list[int]:
    """Return the ids of the processes of a machine."""
    return [int(pid) for pid in run("ip", "netns", "pids", machine).split()]


def plug_in(machine: str) -> None:
    """Connect a machine again."""
    run("ip", "link", "set", f"to-{machine}", "up")
