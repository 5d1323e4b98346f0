"""Every overlay is one mesh: its parts agree with each other, with deploy/serve.yaml and with the programs."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import manifests as written
import pytest
import redis
import yaml
from ray.serve.schema import ServeDeploySchema

from autoglm.cli import mesh as cli
from autoglm.cli.checks import cache_binary
from autoglm.cli.processes import StartError
from autoglm.gateway.drain import LAST_SECONDS
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.settings import Settings

from ...waiting import eventually
from .kustomize import K8S, ROOT, Manifest, PodOf, build, named, of_kind, pods, variables

REDIS_BYTES = 512 * 1024**2
SERVE = yaml.safe_load((ROOT / "deploy/serve.yaml").read_text(encoding="utf-8"))


def cluster(mesh: list[Manifest]) -> dict[str, Any]:
    return dict(named(mesh, "RayService", "autoglm")["spec"]["rayClusterConfig"])


def serve_config(mesh: list[Manifest]) -> dict[str, Any]:
    return dict(yaml.safe_load(named(mesh, "RayService", "autoglm")["spec"]["serveConfigV2"]))


def pod(mesh: list[Manifest], part: str) -> PodOf:
    return next(each for each in pods(mesh) if each.labels["autoglm.dev/part"] == part)


def ports(container: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def test_what_the_manifests_take_from_the_code_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert written.main(check=True) == 0, capsys.readouterr().out


def test_the_base_serves_what_a_laptop_serves(program: Path) -> None:
    assert serve_config(build(program, K8S / "base")) == SERVE


def test_an_overlay_changes_only_what_it_says(mesh: list[Manifest]) -> None:
    config = serve_config(mesh)
    assert {key: value for key, value in config.items() if key != "applications"} == {
        key: value for key, value in SERVE.items() if key != "applications"
    }
    for ours, theirs in zip(SERVE["applications"], config["applications"], strict=True):
        for key in ("name", "route_prefix", "import_path"):
            assert theirs[key] == ours[key]


def test_serve_and_the_applications_accept_the_config(mesh: list[Manifest]) -> None:
    config = serve_config(mesh)
    ServeDeploySchema.model_validate(config)
    for each in config["applications"]:
        application = cli.Application(**each)
        assert cli.settings_of(application)
        cli.built(application, {})


def test_a_deployment_that_the_code_does_not_have_would_be_noticed() -> None:
    application = cli.Application(**SERVE["applications"][0], deployments=[{"name": "Visoin", "num_replicas": 2}])
    with pytest.raises(StartError, match="no deployment Visoin"):
        cli.built(application, {})


def test_replicas_have_room_where_their_labels_send_them(mesh: list[Manifest]) -> None:
    groups = cluster(mesh)["workerGroupSpecs"]
    assert cluster(mesh)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    free = [[float(group["rayStartParams"]["num-cpus"]), gpus(group)] for group in groups]
    for each in serve_config(mesh)["applications"]:
        settings = cli.settings_of(cli.Application(**each))
        (options,) = each.get("deployments", [{}])
        needs = options.get("ray_actor_options", {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus})
        wanted = needs.get("label_selector", {}).items()
        index = next(i for i, group in enumerate(groups) if wanted <= group.get("labels", {}).items())
        for _ in range(options.get("num_replicas", 1)):
            free[index][0] -= needs["num_cpus"]
            free[index][1] -= needs.get("num_gpus", 0)
    assert all(left >= 0 for group in free for left in group)


def gpus(group: Manifest) -> float:
    (container,) = group["template"]["spec"]["containers"]
    return float(container["resources"]["limits"].get("nvidia.com/gpu", 0))


def test_no_second_cluster_is_started_where_it_has_no_cards(mesh: list[Manifest]) -> None:
    spec = named(mesh, "RayService", "autoglm")["spec"]
    if any(gpus(group) for group in cluster(mesh)["workerGroupSpecs"]):
        assert spec["upgradeStrategy"] == {"type": "None"}


def test_ports_agree_with_the_serve_config(mesh: list[Manifest]) -> None:
    http, grpc = SERVE["http_options"]["port"], SERVE["grpc_options"]["port"]
    for each in pods(of_kind(mesh, "RayService")):
        (container,) = each.containers
        assert (ports(container)["serve"], ports(container)["serve-grpc"]) == (http, grpc)
    service = named(mesh, "RayService", "autoglm")["spec"]["serveService"]
    assert service["spec"]["clusterIP"] == "None"  # a gateway sees every node
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == {"serve": http, "serve-grpc": grpc}
    (gateway,) = pod(mesh, "gateway").containers
    address = variables(gateway, mesh)["AUTOGLM_SERVE_ADDRESS"]
    assert address == f"{service['metadata']['name']}:{grpc}"


def test_ports_agree_with_the_gateways_settings(mesh: list[Manifest]) -> None:
    (gateway,) = pod(mesh, "gateway").containers
    assert ports(gateway) == {"http": Settings().http_port, "grpc": Settings().grpc_port}
    service = named(mesh, "Service", "autoglm")["spec"]
    assert {port["targetPort"] for port in service["ports"]} == {"http", "grpc"}
    assert service["selector"].items() <= pod(mesh, "gateway").labels.items()


def test_policies_let_through_what_has_to_pass(mesh: list[Manifest]) -> None:
    policies = of_kind(mesh, "NetworkPolicy")
    if not policies:
        return
    denied = named(mesh, "NetworkPolicy", "autoglm-default")["spec"]
    assert (denied["podSelector"], denied["policyTypes"]) == ({}, ["Ingress", "Egress"])
    redis_port = {6379}
    passes = {
        ("gateway", "ray", frozenset({SERVE["grpc_options"]["port"]})),
        ("gateway", "redis-cache", frozenset(redis_port)),
        ("ray", "ray", frozenset[int]()),  # every port
        ("ray", "redis-gcs", frozenset(redis_port)),
    }
    for sender, receiver, some in passes:
        assert (receiver, some) in peers(named(mesh, "NetworkPolicy", f"autoglm-{sender}"), "egress", "to")
        assert (sender, some) in peers(named(mesh, "NetworkPolicy", f"autoglm-{receiver}"), "ingress", "from")
    (container,) = pods(of_kind(mesh, "RayService"))[0].containers
    outside = {
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"]: {port["port"] for port in rule["ports"]}
        for rule in named(mesh, "NetworkPolicy", "autoglm-ray")["spec"]["ingress"]
        for peer in rule["from"]
        if "namespaceSelector" in peer
    }
    known = ports(container)
    assert outside == {"kuberay-operator": {known["dashboard"], known["serve"]}, "prometheus": {known["metrics"]}}


def peers(policy: Manifest, direction: str, side: str) -> set[tuple[str, frozenset[int]]]:
    """Return the parts of the mesh that a policy lets through, and the ports; no port means every port."""
    return {
        (
            peer["podSelector"]["matchLabels"]["autoglm.dev/part"],
            frozenset(port["port"] for port in rule.get("ports", ())),
        )
        for rule in policy["spec"][direction]
        for peer in rule.get(side, ())
        if "namespaceSelector" not in peer
    }


def test_graces_follow_from_the_longest_answer(mesh: list[Manifest]) -> None:
    (gateway,) = pod(mesh, "gateway").containers
    asked = variables(gateway, mesh)
    longest, drain = float(asked["AUTOGLM_MAX_TIMEOUT"]), float(asked["AUTOGLM_DRAIN_TIMEOUT"])
    leaving = gateway["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert drain >= longest
    assert pod(mesh, "gateway").spec["terminationGracePeriodSeconds"] > leaving + drain + LAST_SECONDS
    service = named(mesh, "RayService", "autoglm")
    assert service["spec"]["rayClusterDeletionDelaySeconds"] > longest
    for each in pods([service]):
        served = variables(each.containers[0], mesh)
        assert float(served["AUTOGLM_MAX_TIMEOUT"]) == longest
        assert float(served["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > longest


def test_ray_is_the_version_of_the_image(mesh: list[Manifest]) -> None:
    assert cluster(mesh)["rayVersion"] == version("ray")
    lock = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"ray=={cluster(mesh)['rayVersion']}\n" in lock


def test_images_are_of_this_release(mesh: list[Manifest]) -> None:
    for each in pods(mesh):
        for container in each.containers:
            name, _, tag = container["image"].partition(":")
            if name.startswith("autoglm-mesh/"):
                assert tag.removesuffix("-cuda") == version("autoglm-mesh")


def test_what_scales_and_scrapes_asks_for_metrics_that_exist(mesh: list[Manifest]) -> None:
    known = GatewayMetrics().render().decode()
    for scaled in of_kind(mesh, "ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            (metric,) = re.findall(r"autoglm_\w+", trigger["metadata"]["query"])
            assert f"\n{metric} " in known
    for monitor in of_kind(mesh, "PodMonitor"):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        keep = next(rule["regex"] for rule in endpoint["metricRelabelings"] if rule["action"] == "keep")
        assert re.fullmatch(keep, "ray_autoglm_num_requests_running")
        assert endpoint["port"] in ports(pods(of_kind(mesh, "RayService"))[0].containers[0])


@contextmanager
def running_redis(config: Path, folder: Path) -> Iterator[redis.Redis]:
    """A server with the configuration of a manifest."""
    binary, socket = cache_binary(), folder / "redis.sock"
    assert binary is not None
    options = {"port": "0", "unixsocket": str(socket), "dir": str(folder), "requirepass": "secret"}
    command = [binary, str(config), *(word for name, value in options.items() for word in (f"--{name}", value))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            eventually(socket.exists, "the server listens")
            with redis.Redis(unix_socket_path=str(socket), password="secret") as client:
                yield client
        finally:
            server.terminate()


@pytest.mark.parametrize(
    ("config", "policy", "durable"),
    [
        ("base/redis-cache.conf", "allkeys-lru", "no"),
        ("components/gcs-fault-tolerance/redis-gcs.conf", "noeviction", "yes"),
    ],
)
def test_redis_evicts_only_what_can_be_computed_again(config: str, policy: str, durable: str, tmp_path: Path) -> None:
    with running_redis(K8S / config, tmp_path) as client:
        found = client.config_get("maxmemory*", "appendonly")
    assert (found["maxmemory-policy"], found["appendonly"]) == (policy, durable)
    assert found["maxmemory"] == str(REDIS_BYTES)


def test_redis_may_take_more_memory_than_it_keeps(mesh: list[Manifest]) -> None:
    limits = {each.containers[0]["resources"]["limits"]["memory"] for each in pods(mesh) if "redis" in each.owner}
    assert limits == {"640Mi"}
    assert REDIS_BYTES <= 0.8 * 640 * 1024**2
