"""The child process of `autoglm serve` that owns Ray: starts it, deploys the applications, and waits.

It is a separate process because Ray exits the process that drives it when Ray's own processes die. It reports on
stdout, one JSON object per line: {"services": [...]}, then {"devices": [...], "int8": ["vision"]}; or {"error": "..."};
or {"again": "..."} for a failure that another try may not have.
"""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import grpc
import psutil
import yaml
from pydantic import ValidationError

from autoglm.cli.isolation import LOOPBACK, Ports
from autoglm.cli.processes import StartError, TryAgain
from autoglm.common.logs import log_config
from autoglm.common.modalities import APPLICATION_PARTS, ApplicationName
from autoglm.common.ray_internals import slim_start, with_options
from autoglm.common.serve_settings import ServiceSettings
from autoglm.common.server import serve_tokens
from autoglm.common.services import SERVICES

OBJECT_STORE = 128 * 1024**2


@dataclass(frozen=True, slots=True)
class Application:
    """One application of the Serve config."""

    name: ApplicationName
    route_prefix: str
    import_path: str
    args: Mapping[str, Any]
    deployments: Sequence[Mapping[str, Any]] = ()  # options that replace those in the code


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """The parts of deploy/serve.yaml that a single machine uses: addresses and ports are chosen at each start."""

    servicer_functions: tuple[str, ...]
    applications: tuple[Application, ...]

    @classmethod
    def load(cls, path: Path) -> "ServeConfig":
        """Read the file; raises StartError for an application, or a key of one, that would be ignored."""
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
            functions = tuple(raw["grpc_options"]["grpc_servicer_functions"])
            applications = tuple(Application(**application) for application in raw["applications"])
            unknown = {application.name for application in applications} - APPLICATION_PARTS.keys()
        except TypeError as error:
            raise StartError(f"{path} has a key that a single machine cannot use ({error}): remove it") from None
        except (OSError, KeyError, yaml.YAMLError) as error:
            raise StartError(
                f"{path} cannot be used ({type(error).__name__}: {str(error).splitlines()[0]}): restore it"
            ) from None
        for name in sorted(unknown):
            raise StartError(f"{path} has an application {name!r}; this release knows {', '.join(APPLICATION_PARTS)}")
        return cls(functions, applications)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The devices and quantization that the running services report."""

    devices: tuple[str, ...]
    int8: tuple[str, ...]  # the services with 8-bit weights


def config_path() -> Path:
    """Return the path of the Serve config: in the installed package, else in the checkout."""
    here = Path(__file__).resolve()
    installed = here.parents[1] / "assets" / "serve.yaml"
    return installed if installed.is_file() else here.parents[3] / "deploy" / "serve.yaml"


def start_ray(folder: Path, ports: Ports) -> None:
    """Start a local Ray that ends with this process, and connect to it."""
    import ray

    slim_start(ports.agents)
    ray.init(
        address="local",
        _node_ip_address=LOOPBACK,
        _temp_dir=str(folder),
        _metrics_export_port=ports.metrics,
        num_cpus=max(2, os.cpu_count() or 1),
        object_store_memory=OBJECT_STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def start_ingress(functions: Sequence[str], ports: Ports) -> None:
    """Start Serve with gRPC at `ports.ingress`; raises TryAgain if a port is in use or the ingress is too slow."""
    from ray import serve
    from ray.exceptions import RayError

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(
            proxy_location="EveryNode",
            http_options={"host": LOOPBACK, "port": ports.http},
            grpc_options={"port": ports.ingress, "grpc_servicer_functions": list(functions)},
            logging_config={"enable_access_log": False, **log_config(os.environ)},
        )
    except (RuntimeError, TimeoutError, RayError) as error:
        raise TryAgain(f"the ingress does not start: {_cause(str(error))}") from None


def deploy(applications: Sequence[Application]) -> None:
    """Run the applications and return when all are ready; raises StartError if one cannot start."""
    from ray import serve
    from ray.exceptions import RayError

    placed = placement(gpus())
    targets = [
        serve.RunTarget(built(application, placed), name=application.name, route_prefix=application.route_prefix)
        for application in applications
    ]
    try:
        serve.run_many(targets)
    except (RuntimeError, TimeoutError, RayError) as error:
        raise StartError(f"the services do not start: {_cause(str(error))}") from None


def built(application: Application, placed: Mapping[str, str]) -> Any:
    """Return the application that Serve runs, on the device in `placed`, if any; raises StartError for a wrong key."""
    device = {"device": placed[application.name]} if application.name in placed else {}
    build, _ = _definition(application)
    made = build(settings_of(application).model_copy(update=device))
    try:
        return with_options(made, application.deployments)
    except (TypeError, ValueError) as error:
        reason = next(line for line in str(error).splitlines() if line)
        raise StartError(f"{config_path()}: deployments of {application.name}: {reason}") from None


def settings_of(application: Application) -> ServiceSettings:
    """Return the settings in an application's `args`; raises StartError that names the first wrong key."""
    _, settings = _definition(application)
    try:
        return settings.model_validate(application.args)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        key = str(wrong["loc"][0]) if wrong["loc"] else ""
        near = get_close_matches(key, settings.model_fields, n=1) if wrong["type"] == "extra_forbidden" else []
        message = f"no such key; did you mean {near[0]}?" if near else wrong["msg"]
        where = f"args of {application.name}" + (f": {key}" if key else "")
        raise StartError(f"{config_path()}: {where}: {message}") from None


def _definition(application: Application) -> tuple[Callable[[Any], Any], type[ServiceSettings]]:
    """Return what builds an application, and the type of its settings."""
    module, name = application.import_path.split(":")
    build = getattr(import_module(module), name)
    return build, get_type_hints(build)["settings"]


def _cause(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line or "cannot bind" in line), lines[-1])


def gpus() -> int:
    """Return how many GPUs Ray found and this build of PyTorch can use."""
    import ray

    return 0 if version("torch").endswith("+cpu") else int(ray.cluster_resources().get("GPU", 0))


def placement(count: int) -> dict[str, str]:
    """Return the device of each service with `count` GPUs: encoders on the first, the decoder on the second if any."""
    if count == 0:
        return {}
    devices: dict[str, str] = dict.fromkeys(APPLICATION_PARTS, "cuda:0")
    return devices | {"decoder": "cuda:1"} if count > 1 else devices


def describe(port: int, services: Sequence[str]) -> Loaded:
    """Call Describe of every service through the ingress; raises StartError if one does not answer."""
    limit = time.monotonic() + 60
    with grpc.insecure_channel(f"{LOOPBACK}:{port}") as channel:
        answers = {name: _ask(channel, name, limit) for name in services}
    infos = {name: answer if name == "decoder" else answer.encoder for name, answer in answers.items()}
    devices = {info.device for info in infos.values() if info.device}  # none of one that is scaled to zero
    return Loaded(tuple(sorted(devices)), tuple(name for name, info in infos.items() if info.int8))


def _ask(channel: grpc.Channel, name: str, limit: float) -> Any:
    service = SERVICES[name]
    token = serve_tokens(os.environ["AUTOGLM_SERVE_TOKEN"])[0]
    metadata = (("application", name), ("authorization", f"Bearer {token}"))
    while True:
        try:
            return service.stub(channel).Describe(service.describe(), timeout=10, metadata=metadata)
        except grpc.RpcError as error:
            if time.monotonic() > limit:
                raise StartError(f"the {name} service does not answer: {error.details()}") from None
            time.sleep(0.1)


def main(folder: str, ingress: str, block: str, *services: str) -> int:
    """Run those `services` that the Serve config has, until a signal ends the process.

    Returns 1 if an application cannot start or Ray dies.
    """
    ports = Ports(int(ingress), int(block))
    events = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        config = ServeConfig.load(config_path())
        start_ray(Path(folder), ports)
        start_ingress(config.servicer_functions, ports)
        applications = [application for application in config.applications if application.name in services]
        names = [application.name for application in applications]
        report(events, {"services": names})
        deploy(applications)
        report(events, asdict(describe(ports.ingress, names)))
    except StartError as error:
        report(events, {"again" if isinstance(error, TryAgain) else "error": str(error)})
        return 1
    servers = [child for child in psutil.Process().children() if child.name() in ("gcs_server", "raylet")]
    while all(server.status() != psutil.STATUS_ZOMBIE for server in servers):
        time.sleep(0.5)
    return 1


def report(events: int, event: Mapping[str, object]) -> None:
    """Write an event for the parent."""
    os.write(events, json.dumps(event).encode() + b"\n")


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))  # The parent ends Ray's processes; an orderly shutdown would take seconds.
