"""What a start prints, what a stop leaves, and the one line that a start that cannot be ends with."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from autoglm.cli.isolation import BLOCK, Ports, free_ports
from autoglm.common.bundle import chosen_bundle, write_manifest

from ..mesh import Mesh, command, text_bundle
from ..waiting import NET_SECONDS, eventually

LOG_LINES = (
    "Loading model ",
    "Devices: ",
    "INT8 quantization: off",
    "Model loaded successfully in ",
    "Starting FastAPI server at http://127.0.0.1:{port}",
    "OpenAI-compatible endpoint enabled at /v1/chat/completions",
    "Ready in ",
)


def workplaces() -> set[Path]:
    """Return the temporary folders of running meshes."""
    return set(Path(tempfile.gettempdir()).glob("autoglm-*"))


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process still runs."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def refused(*arguments: str, **environment: str) -> str:
    """Run `autoglm serve`, which must fail, and return the single line that it says."""
    done = subprocess.run(command("serve", *arguments), capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_the_start_tells_what_it_does_in_order(mesh: Mesh) -> None:
    text = "\n".join(mesh.lines())
    places = [text.find(line.format(port=mesh.http_port)) for line in LOG_LINES]
    assert -1 not in places, text
    assert places == sorted(places), text


def test_a_second_mesh_runs_apart_and_leaves_nothing(mesh: Mesh, tmp_path: Path) -> None:
    bundle = text_bundle(tmp_path / "text")
    write_manifest(bundle, "text-only", "gcma")
    before = workplaces()
    second = Mesh.start(tmp_path / "serve.log", AUTOGLM_BUNDLE=str(bundle))
    second.wait()
    cards = httpx.get(f"{second.http_url}/v1/models", trust_env=False).json()["data"]
    assert cards[0]["id"] == "text-only"
    assert cards[0]["modalities"] == ["text"]
    descendants = second.descendants()
    assert len(descendants) > 5
    assert second.stop(signal.SIGINT) == 0
    assert not [process for process in descendants if is_alive(process)]
    assert workplaces() == before
    assert mesh.process.poll() is None


RAYS_METHODS = (
    "rpc.CoreWorkerService/Exit",
    "rpc.NodeManagerService/GetNodeStats",
    "rpc.NodeInfoGcsService/GetAllNodeInfo",
    "rpc.ObjectManagerService/Pull",
    "rpc.ReporterService/GetTraceback",
    "serve.ASGIService/HandleRequest",
)


def listening(mesh: Mesh) -> set[tuple[str, int]]:
    """Return the addresses at which the mesh's processes listen; that of the gateway is loopback in tests."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in mesh.descendants()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_other_machines_meet_only_the_gateway(mesh: Mesh) -> None:
    addresses = listening(mesh)
    assert len(addresses) > 20
    assert {ip.removeprefix("::ffff:") for ip, _ in addresses} == {"127.0.0.1"}


def test_rays_own_ports_want_its_token(mesh: Mesh) -> None:
    (metrics,) = [int(port) for port in re.findall(r"http://127.0.0.1:(\d+)/metrics", mesh.log.read_text())]
    ports = Ports(int(mesh.serve_address.rpartition(":")[2]), metrics - 3)
    doors = {mesh.http_port, mesh.grpc_port, ports.ingress}
    served = set(range(ports.block, ports.block + BLOCK)) - set(ports.agents.values())
    rays = {port for _, port in listening(mesh)} - doors - served
    assert len(rays) > 10
    for port in rays:
        assert wants_rays_token(f"127.0.0.1:{port}"), port


def wants_rays_token(address: str) -> bool:
    """Return whether a server of Ray's, of HTTP or of gRPC, answers that the token is missing."""
    with suppress(httpx.TransportError):
        return httpx.get(f"http://{address}/", trust_env=False).status_code == 401
    with grpc.insecure_channel(address) as channel:
        codes = [
            channel.unary_unary(f"/ray.{method}", bytes, bytes).future(b"", timeout=NET_SECONDS).code()
            for method in RAYS_METHODS
        ]
    return grpc.StatusCode.UNAUTHENTICATED in codes


@pytest.mark.parametrize("part", ["autoglm.cli.mesh", "raylet/raylet", "ray::ServeReplica:"])
def test_a_stop_half_way_leaves_nothing(tmp_path: Path, part: str) -> None:
    before = workplaces()
    starting = Mesh.start(tmp_path / "serve.log")
    eventually(lambda: starting.running(part) is not None, f"{part} runs")
    descendants = starting.descendants()
    assert starting.stop() == 0
    assert [line for line in starting.lines() if "Ready in" in line] == []  # it did not wait for the start's end
    assert not [process for process in descendants if is_alive(process)]
    assert workplaces() == before


def test_bad_luck_is_tried_again_with_other_ports(tmp_path: Path) -> None:
    bundle = text_bundle(tmp_path / "text")
    write_manifest(bundle, "text-only", "gcma")
    starting = Mesh.start(tmp_path / "serve.log", AUTOGLM_BUNDLE=str(bundle))

    def driver() -> psutil.Process:
        eventually(lambda: starting.running("autoglm.cli.mesh") is not None, "Ray is started")
        found = starting.running("autoglm.cli.mesh")
        assert found is not None
        return found

    first = driver()
    first.kill()
    first.wait(NET_SECONDS)
    _, ingress, *_ = driver().cmdline()[3:]
    with socket.create_server(("127.0.0.1", int(ingress))):
        starting.wait()
    failures = [line for line in starting.lines() if line.endswith("; trying again with other ports")]
    assert len(failures) == 2
    assert "Ray does not start" in failures[0]
    assert f"cannot bind socket (Address already in use) for [127.0.0.1:{ingress}]" in failures[1]
    assert not starting.serve_address.endswith(f":{ingress}")
    assert starting.stop() == 0


@pytest.mark.parametrize(
    ("option", "variable"), [("--http-port", "AUTOGLM_HTTP_PORT"), ("--grpc-port", "AUTOGLM_GRPC_PORT")]
)
def test_a_taken_port_is_named(option: str, variable: str) -> None:
    ports = dict(zip(("--http-port", "--grpc-port"), free_ports(2), strict=True))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports[option] = taken.getsockname()[1]
        arguments = [str(word) for pair in ports.items() for word in pair]
        line = refused("--host", "127.0.0.1", *arguments)
    assert f"port {ports[option]} is taken" in line
    assert option in line
    assert variable in line


@pytest.mark.parametrize("file", ["vision/model.safetensors", "speech/config.json", "decoder/tokenizer.json"])
def test_a_missing_file_of_the_bundle_is_named(tmp_path: Path, file: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(chosen_bundle(), bundle)
    (bundle / file).unlink()
    assert file in refused("--bundle", str(bundle))


def test_a_bundle_without_a_decoder_is_refused(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(chosen_bundle(), bundle)
    manifest = json.loads((bundle / "bundle.json").read_text())
    del manifest["parts"]["decoder"]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    assert "no decoder part" in refused("--bundle", str(bundle))


def test_a_modality_that_is_not_there_gets_the_names_there_are() -> None:
    assert refused("--modalities", "vision,smell").endswith("no 'smell'; choose from text, vision, speech")


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert str(tmp_path) in refused("--bundle", str(tmp_path))


@pytest.mark.parametrize(("modalities", "parts"), [("", "vision, speech, decoder"), ("vision", "vision, decoder")])
def test_doctor_finds_nothing_wrong(modalities: str, parts: str) -> None:
    http_port, grpc_port = free_ports(2)
    ports = ("--http-port", str(http_port), "--grpc-port", str(grpc_port))
    done = subprocess.run(
        command("doctor", "--host", "127.0.0.1", *ports, "--modalities", modalities),
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The mesh can start" in done.stdout
    assert f": {parts}, every file as published" in done.stdout
