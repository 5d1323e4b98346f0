"""The targets of the comparison, each a process of its own: the stub, and before it our gateway and maybe peers."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from autoglm.bench.gateway.generator import LoadClient, OverGrpc, OverHttp
from autoglm.bench.gateway.stub import MODEL
from autoglm.cli import processes
from autoglm.cli.api import Api, ApiError
from autoglm.cli.isolation import LOOPBACK, free_ports
from autoglm.cli.processes import StartError
from autoglm.common.bundle import default_bundle

STUBS = OVER_GRPC, OVER_HTTP = "stub, gRPC", "stub, HTTP"
GATEWAY, LITELLM, VLLM = "gateway", "LiteLLM", "vLLM"
SERVERS = {GATEWAY: OVER_GRPC, LITELLM: OVER_HTTP, VLLM: OVER_GRPC}  # and the stub as each of them asks it

MADE_BY = {LITELLM: "`sh tools/litellm.sh`", VLLM: "`sh tools/test_vllm.sh`"}
START_SECONDS = 120
STOP_SECONDS = 10

# What LiteLLM's documentation advises for production and for benchmarks, where nothing is logged and there is no
# database: docs/proxy/prod, docs/proxy/server_tuning, docs/benchmarks.
LITELLM_ENVIRONMENT = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "KEEPALIVE_TIMEOUT": "75",
    "NUM_WORKERS": "1",
}
VLLM_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
VLLM_OPTIONS = ("--disable-uvicorn-access-log", "--disable-log-stats")
LITELLM_SETTINGS = {"callbacks": [], "num_retries": 0, "request_timeout": 600, "set_verbose": False, "json_logs": True}
HOW = {
    LITELLM: f"one worker, {' '.join(f'{k}={v}' for k, v in LITELLM_ENVIRONMENT.items())}, no database, no callbacks, "
    "no retries",
    VLLM: f"one API server, {' '.join(VLLM_OPTIONS)}; its engine client is replaced by one that asks the stub by gRPC "
    "as the gateway does (its own would speak ZeroMQ), so that nothing is scheduled or detokenized",
}


@dataclass(frozen=True, slots=True)
class Target:
    """Who answers: how to ask, called where the loop runs, and the process to look at."""

    connect: Callable[[], LoadClient]
    process: psutil.Process

    @property
    def cpu_seconds(self) -> float:
        """The time that its processes have computed."""
        return sum(sum(each.cpu_times()[:2]) for each in self._processes)

    @property
    def resident_bytes(self) -> int:
        """The memory of its processes."""
        return sum(each.memory_info().rss for each in self._processes)

    @property
    def _processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


def version_of(peer: str, program: Path) -> str:
    """Return how a peer was set up; raises StartError when `program` is not LiteLLM's, or no Python that has vLLM."""
    options = ["--version"] if peer == LITELLM else ["-c", "import vllm; print(vllm.__version__)"]
    try:
        said = subprocess.run([program, *options], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise StartError(f"{program} is not what {peer} runs with: make it with {MADE_BY[peer]}") from None
    return f"{peer} {said.split()[-1]}, {HOW[peer]}"


@contextmanager
def running_targets(peers: Mapping[str, Path]) -> Iterator[dict[str, Target]]:
    """Run every target inside the block, by name: the stub, the gateway, and `peers`, each by its program.

    Raises StartError when one does not start.
    """
    with ExitStack() as stack:
        ports, process = stack.enter_context(running_stub())
        key = new_key()
        targets = {
            OVER_GRPC: Target(partial(OverGrpc, ports["grpc"]), process),
            OVER_HTTP: Target(partial(OverHttp, ports["http"], key), process),
            GATEWAY: stack.enter_context(running_gateway(ports["grpc"])),
        }
        if LITELLM in peers:
            targets[LITELLM] = stack.enter_context(_litellm(peers[LITELLM], ports["http"], key))
        if VLLM in peers:
            targets[VLLM] = stack.enter_context(_vllm(peers[VLLM], ports["grpc"], key))
        yield targets


@contextmanager
def running_stub() -> Iterator[tuple[Mapping[str, int], psutil.Process]]:
    """Run the stub inside the block, and give its ports, `grpc` and `http`, and its process; raises StartError."""
    command = [sys.executable, "-m", "autoglm.bench.gateway.stub"]
    with _child("the stub", command, {}, subprocess.PIPE) as stub:
        assert stub.stdout is not None
        line = stub.stdout.readline()
        if not line:
            raise StartError("the stub does not start")
        yield json.loads(line), psutil.Process(stub.pid)


def new_key() -> str:
    """Return an API key."""
    return f"sk-{secrets.token_hex(32)}"


@contextmanager
def running_gateway(stub_port: int, variables: Mapping[str, str] | None = None) -> Iterator[Target]:
    """Run our gateway inside the block, with its own defaults, but for the places: 512 streams are asked at once.

    `variables` are more of its environment. Raises StartError.
    """
    http_port, grpc_port = free_ports(2)
    key = new_key()
    environment = {
        "AUTOGLM_HOST": LOOPBACK,
        "AUTOGLM_HTTP_PORT": str(http_port),
        "AUTOGLM_GRPC_PORT": str(grpc_port),
        "AUTOGLM_SERVE_ADDRESS": f"{LOOPBACK}:{stub_port}",
        "AUTOGLM_API_KEYS": key,
        "AUTOGLM_MAX_CONCURRENT_REQUESTS": "1024",
        **(variables or {}),
    }
    with _child("the gateway", [sys.executable, "-m", "autoglm.gateway.app"], environment) as child:
        _wait("the gateway", child, http_port, key)
        yield Target(partial(OverHttp, http_port, key), psutil.Process(child.pid))


@contextmanager
def _litellm(program: Path, stub_port: int, key: str) -> Iterator[Target]:
    (port,) = free_ports(1)
    where = {"model": f"openai/{MODEL}", "api_base": f"http://{LOOPBACK}:{stub_port}/v1", "api_key": "EMPTY"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": where}],
        "litellm_settings": LITELLM_SETTINGS,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(config, file)  # JSON is YAML
        file.flush()
        environment = {**LITELLM_ENVIRONMENT, "LITELLM_MASTER_KEY": key}
        options = ("--config", file.name, "--host", LOOPBACK, "--port", str(port), "--num_workers", "1")
        with _child("LiteLLM", [str(program), *options, "--telemetry", "False"], environment) as child:
            _wait("LiteLLM", child, port, key)
            yield Target(partial(OverHttp, port, key), psutil.Process(child.pid))


@contextmanager
def _vllm(python: Path, stub_port: int, key: str) -> Iterator[Target]:
    (port,) = free_ports(1)
    model = str(default_bundle() / "decoder")  # its tokenizer and chat template; no weights are read
    options = {"model": model, "served-model-name": MODEL, "api-key": key, "host": LOOPBACK, "port": str(port)}
    command = [str(python), "-m", "autoglm.bench.gateway.vllm_server", str(stub_port)]
    command += [f"--{name}={value}" for name, value in options.items()] + list(VLLM_OPTIONS)
    with _child("vLLM", command, VLLM_ENVIRONMENT) as child:
        _wait("vLLM", child, port, key)
        yield Target(partial(OverHttp, port, key), psutil.Process(child.pid))


@contextmanager
def _child(
    name: str, command: Sequence[str], environment: Mapping[str, str], stdout: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a child inside the block, without the settings of the surroundings."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AUTOGLM_", "LITELLM_"))}
    try:
        child = processes.start(command, {**inherited, **environment}, stdout, subprocess.DEVNULL)
    except OSError as error:
        raise StartError(f"{name} does not start: {error.strerror}: {command[0]}") from None
    try:
        yield child
    finally:
        processes.end(child, STOP_SECONDS, threading.Event())


def _wait(name: str, child: subprocess.Popen[bytes], port: int, key: str) -> None:
    """Return once it knows its models."""
    limit = time.monotonic() + START_SECONDS
    api = Api(f"http://{LOOPBACK}:{port}", key, timeout=5)
    while True:
        try:
            api.get("/v1/models")
        except ApiError as error:
            if child.poll() is not None or time.monotonic() > limit:
                raise StartError(f"{name} does not start: {error}") from None
            time.sleep(0.1)
        else:
            return
