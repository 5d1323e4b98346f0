"""What an API server, a policy of the cluster and the programs themselves would say of every kustomization."""

import re
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest

from autoglm.common.environment import GATEWAY, SERVICES, review
from autoglm.gateway.settings import Settings

from .kustomize import ROOT, Manifest, check, of_kind, pods, variables

GUIDE = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")


def test_every_object_is_valid_and_every_field_known(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        check(manifest)


@pytest.mark.parametrize(
    "manifest",
    [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"portz": []}},
        {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "a"}, "spec": {"rayCluster": {}}},
        {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "a"}, "spec": {"suspend": "no"}},
        {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": "a"}, "spec": {}},
    ],
)
def test_an_object_that_an_api_server_would_refuse_is_found(manifest: Manifest) -> None:
    with pytest.raises((jsonschema_rs.ValidationError, kubernetes_validate.ValidationError)):
        check(manifest)


def test_every_object_is_in_the_namespace(manifests: list[Manifest]) -> None:
    where = {manifest["metadata"].get("namespace") for manifest in manifests if manifest["kind"] != "Namespace"}
    assert where == {"autoglm"}


def test_no_two_objects_have_one_name(manifests: list[Manifest]) -> None:
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(set(names)) == len(names)


def test_images_have_versions(manifests: list[Manifest]) -> None:
    images = {container["image"] for pod in pods(manifests) for container in pod.containers}
    for image in images:
        assert re.fullmatch(r"[a-z0-9./-]+:\d+\.\d+\.\d+(-[a-z]+)?", image)
    ours = {image.partition(":")[0] for image in images if image.startswith("autoglm")}
    assert ours <= {"autoglm-mesh/gateway", "autoglm-mesh/services"}


def test_pods_are_restricted(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        assert pod.spec["automountServiceAccountToken"] is False, pod.owner
        assert pod.spec["enableServiceLinks"] is False, pod.owner
        secured = pod.spec["securityContext"]
        assert (secured["runAsNonRoot"], secured["runAsUser"] > 0) == (True, True), pod.owner
        assert secured["seccompProfile"] == {"type": "RuntimeDefault"}, pod.owner
        for container in pod.containers:
            assert_is_restricted(container)


def assert_is_restricted(container: dict[str, Any]) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_autoscaler_is_restricted_and_alone_has_a_token(manifests: list[Manifest]) -> None:
    for service in of_kind(manifests, "RayService"):
        options = service["spec"]["rayClusterConfig"].get("autoscalerOptions")
        if options is not None:
            assert_is_restricted(options)
        for pod in pods([service]):
            mounted = {mount["name"] for container in pod.containers for mount in container["volumeMounts"]}
            assert not any("projected" in volume for volume in pod.spec["volumes"] if volume["name"] in mounted)


def test_pods_say_what_they_need_and_how_much_memory_they_may_take(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        for container in pod.containers:
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}, pod.owner
            assert "memory" in container["resources"]["limits"], pod.owner


def test_probes_are_the_kubelets_own_and_ask_ports_that_exist(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        if pod.owner.startswith("Job/"):
            continue
        (container,) = pod.containers
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for name in ("livenessProbe", "readinessProbe"):
            (action,) = container[name].keys() & {"httpGet", "grpc", "tcpSocket"}
            port = container[name][action]["port"]
            assert port in {*ports, *ports.values(), 52365}, pod.owner  # the last: Ray's agent, on every node


def test_what_pods_mount_is_a_volume_and_the_root_is_for_reading(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        claims = {"data"} if pod.owner.startswith("StatefulSet/") else set()
        for container in pod.containers:
            for mount in container["volumeMounts"]:
                writable = mount["name"] in claims or "emptyDir" in volumes[mount["name"]]
                assert writable or mount.get("readOnly") or pod.owner == "Job/autoglm-bundle", pod.owner
        if any(container["image"].startswith("autoglm-mesh") for container in pod.containers):
            assert any(mount["mountPath"] == "/tmp" for mount in pod.containers[0]["volumeMounts"])


def test_every_variable_is_a_setting_of_the_program_that_gets_it(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    for pod in pods(manifests):
        for container in pod.containers:
            named = variables(container, manifests)
            ours = {name: value for name, value in named.items() if name.startswith("AUTOGLM_")}
            reads = GATEWAY if container["name"] == "gateway" else SERVICES
            assert {name.removeprefix("AUTOGLM_") for name in ours} <= reads, pod.owner
            if container["name"] == "gateway":
                if ours["AUTOGLM_REDIS_URL"] == "secret":
                    ours["AUTOGLM_REDIS_URL"] = "rediss://user:password@redis.internal:6380/0"
                assert review(dict(ours), reads=GATEWAY).faults == ()
                for name, value in ours.items():
                    monkeypatch.setenv(name, value)
                assert Settings().warnings == ()


def test_what_a_manifest_names_exists_or_the_guide_says_how_to_make_it(manifests: list[Manifest]) -> None:
    own = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    for kind, name, key in set(named_in(manifests)):
        if kind == "Secret":
            assert re.search(rf"secret (generic|tls) {name}\b.*{key.replace('.', '[.]')}", GUIDE), (name, key)
        elif kind == "PersistentVolumeClaim":
            assert "kubectl apply -k deploy/k8s/bundle" in GUIDE
        elif name != "kube-root-ca.crt":  # Kubernetes makes this one in each namespace
            assert (kind, name) in own


def named_in(tree: Any) -> list[tuple[str, str, str]]:
    """Return kind, name and key, if any, of every ConfigMap, Secret and claim that is named in a part of a manifest."""
    if isinstance(tree, list):
        return [each for part in tree for each in named_in(part)]
    if not isinstance(tree, dict):
        return []
    found = [each for part in tree.values() for each in named_in(part)]
    for field, kind in (
        ("secretKeyRef", "Secret"),
        ("configMapKeyRef", "ConfigMap"),
        ("configMapRef", "ConfigMap"),
        ("configMap", "ConfigMap"),
        ("claimName", "PersistentVolumeClaim"),
        ("secretName", "Secret"),
    ):
        if isinstance(ref := tree.get(field), dict):
            found.append((kind, ref["name"], ref.get("key", "")))
        elif isinstance(ref, str):
            found.append((kind, ref, ""))
    return found


def test_one_autoscaler_decides_how_many_gateways_run(manifests: list[Manifest]) -> None:
    kinds = [manifest["kind"] for manifest in manifests]
    scalers = kinds.count("HorizontalPodAutoscaler") + kinds.count("ScaledObject")
    for deployment in of_kind(manifests, "Deployment"):
        if deployment["metadata"]["name"] == "autoglm-gateway":
            assert scalers == (0 if "replicas" in deployment["spec"] else 1)
