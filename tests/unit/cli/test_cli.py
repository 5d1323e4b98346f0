"""What the start decides before anything runs."""

import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from autoglm.cli import checks, isolation, mesh, processes
from autoglm.cli.processes import Signals, StartError
from autoglm.common.bundle import write_manifest
from autoglm.common.modalities import PARTS, PartName


def test_short_memory_says_how_much_is_missing() -> None:
    with pytest.raises(StartError, match=r"1\.0 GiB of memory is free and the mesh needs 2\.5"):
        checks.check_memory(1024**3)
    checks.check_memory(8 * 1024**3)


@pytest.mark.parametrize(
    ("count", "devices"),
    [
        (0, {}),
        (1, {"vision": "cuda:0", "speech": "cuda:0", "decoder": "cuda:0"}),
        (2, {"vision": "cuda:0", "speech": "cuda:0", "decoder": "cuda:1"}),
    ],
)
def test_encoders_share_the_first_gpu_and_the_decoder_takes_the_next(count: int, devices: dict[str, str]) -> None:
    assert mesh.placement(count) == devices


def test_the_serve_config_names_the_three_services() -> None:
    config = mesh.ServeConfig.load(mesh.config_path())
    assert [application.name for application in config.applications] == ["vision", "speech", "decoder"]


def test_a_key_that_would_be_passed_over_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(mesh.config_path().read_text() + "    runtime_env: {}\n")
    with pytest.raises(StartError, match="runtime_env"):
        mesh.ServeConfig.load(file)


def test_options_of_deployments_are_read_as_the_cluster_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(mesh.config_path().read_text() + "    deployments: [{name: DecoderReplica, num_replicas: 2}]\n")
    decoder = mesh.ServeConfig.load(file).applications[-1]
    assert decoder.deployments == [{"name": "DecoderReplica", "num_replicas": 2}]


def bundle_of(folder: Path, *parts: PartName) -> Path:
    """Write a bundle whose parts are one small file each."""
    for part in parts:
        (folder / part).mkdir()
        (folder / part / "config.json").write_text("{}")
    write_manifest(folder, "small", "gcma")
    return folder


@pytest.mark.parametrize(
    ("modalities", "services"),
    [
        ("", ["vision", "speech", "decoder"]),
        ("text", ["decoder"]),
        ("vision", ["vision", "decoder"]),
        ("speech, text", ["speech", "decoder"]),
        ("speech,vision", ["vision", "speech", "decoder"]),
    ],
)
def test_only_the_parts_that_are_asked_for_run(tmp_path: Path, modalities: str, services: list[str]) -> None:
    assert list(checks.open_bundle(bundle_of(tmp_path, *PARTS), modalities)[1]) == services


def test_a_bundle_with_fewer_parts_is_served_as_it_is(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, "vision", "fusion", "decoder")
    assert checks.open_bundle(bundle)[1] == ("vision", "decoder")
    with pytest.raises(
        StartError, match=r"AUTOGLM_MODALITIES: bundle small has no 'speech'; choose from text, vision$"
    ):
        checks.open_bundle(bundle, "vision,speech")


@pytest.mark.parametrize("modalities", ["audio", "vision,", "vision speech"])
def test_a_modality_that_nobody_knows_gets_the_names_there_are(tmp_path: Path, modalities: str) -> None:
    with pytest.raises(StartError, match=r"choose from text, vision, speech$"):
        checks.open_bundle(bundle_of(tmp_path, *PARTS), modalities)


def test_files_of_a_part_that_does_not_run_may_be_missing(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, *PARTS)
    (bundle / "speech" / "config.json").unlink()
    checks.open_bundle(bundle, "vision")[0].verify(("vision", "fusion", "decoder"))
    with pytest.raises(StartError, match=r"lacks speech/config\.json"):
        checks.open_bundle(bundle)


def test_an_unknown_architecture_ends_the_start_in_one_line(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, *PARTS)
    write_manifest(bundle, "small", "other")
    with pytest.raises(StartError, match=r"^bundle small has architecture 'other'; this release knows: gcma$"):
        checks.open_bundle(bundle)


def test_ports_of_a_mesh_differ_and_are_free() -> None:
    with isolation.Ports.reserve() as ports:
        chosen = {ports.ingress, ports.http, ports.metrics, *ports.agents.values()}
        assert len(chosen) == 6
        assert all(isolation.is_free(port) for port in chosen)


RESERVING = """
import sys
from autoglm.cli.isolation import Ports
with Ports.reserve() as ports:
    print(ports.ingress, ports.block, flush=True)
    sys.stdin.read()
"""


def test_meshes_that_start_at_once_get_different_ports() -> None:
    command = [sys.executable, "-c", RESERVING]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    chosen = [process.stdout.readline().split() for process in started if process.stdout]
    for process in started:
        process.communicate()
    ingresses, blocks = zip(*chosen, strict=True)
    assert len(set(ingresses)) == len(set(blocks)) == 4


def test_two_meshes_share_no_token_and_no_port(tmp_path: Path) -> None:
    first, second = (
        isolation.environment(tmp_path, tmp_path, isolation.Ports(9000, block))
        for block in (isolation.FIRST, isolation.FIRST + isolation.BLOCK)
    )
    for name in first:
        if name.endswith("_PORT") or name == "RAY_AUTH_TOKEN":
            assert first[name] != second[name]


SERVES_CONSTANTS = """
from ray.serve._private import constants as c
print(c.RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S, c.RAY_SERVE_PORT_QUARANTINE_S,
      c.RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT - c.RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT)
"""


@pytest.mark.parametrize("longest", ["", "600"])
def test_the_longest_answer_survives_replicas_that_start_and_end(
    longest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOGLM_MAX_TIMEOUT", longest)
    environment = isolation.environment(tmp_path, tmp_path, isolation.Ports(9000, isolation.FIRST))
    command = [sys.executable, "-c", SERVES_CONSTANTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    hard_stop, quarantine, ports = map(float, done.stdout.split())
    assert quarantine > hard_stop > float(longest or 3600)  # an old HAProxy finishes them, and meets no other replica
    assert quarantine / ports < 10  # a replica can start that often and always find a port


GAUGES = """
from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder
from ray.serve._private.constants import RAY_SERVE_STATUS_GAUGE_REPORT_INTERVAL_S
print(RAY_SERVE_STATUS_GAUGE_REPORT_INTERVAL_S, OpenTelemetryMetricRecorder._resolve_gauge_ttl_seconds(None))
"""


def test_no_scrape_misses_a_healthy_replica(tmp_path: Path) -> None:
    environment = isolation.environment(tmp_path, tmp_path, isolation.Ports(9000, isolation.FIRST))
    done = subprocess.run([sys.executable, "-c", GAUGES], env=environment, capture_output=True, text=True, check=True)
    reported, forgotten = map(float, done.stdout.split())
    assert reported <= forgotten / 2


ORPHANAGE = """
import subprocess, sys, psutil
from autoglm.cli import processes
processes.adopt_orphans()
stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); signal.pause()"
raising = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}])"
parent = processes.start([sys.executable, "-c", raising], stdout=subprocess.PIPE)
parent.stdout.readline()
parent.wait()
(orphan,) = psutil.Process().children()
processes.end_descendants(0.2)
assert not orphan.is_running()
"""


def test_orphans_that_ignore_sigterm_are_ended() -> None:
    """In a process of its own: the shared mesh is a descendant of this one."""
    done = subprocess.run([sys.executable, "-c", ORPHANAGE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_hurry_cuts_the_patience_short() -> None:
    child = processes.start(
        [
            sys.executable,
            "-c",
            "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); signal.pause()",
        ],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    hurry = threading.Event()
    hurry.set()
    processes.end(child, math.inf, hurry)
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL


def test_a_child_shares_the_session_but_no_signal_of_the_terminal() -> None:
    """In a session of its own it would get as much of the CPU as all others together, whatever their niceness."""
    child = processes.start([sys.executable, "-c", "import signal; signal.pause()"])
    assert os.getsid(child.pid) == os.getsid(0)
    assert os.getpgid(child.pid) == child.pid
    processes.end(child, math.inf, threading.Event())


def test_the_first_signal_stops_and_the_second_hurries() -> None:
    signals = Signals()
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        signals.install()
        signal.raise_signal(signal.SIGTERM)
        assert signals.stop.is_set()
        assert not signals.hurry.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert signals.hurry.is_set()
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
