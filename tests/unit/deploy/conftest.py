"""The manifests of deploy/k8s, built once."""

from pathlib import Path

import pytest

from .kustomize import K8S, Manifest, build, kubectl, with_components

FOLDERS = ("base", "bundle", "overlays/laptop-cpu", "overlays/two-24g", "overlays/autoscale")
# Each component alone on the base, and those that an overlay does not combine.
COMBINATIONS = (
    *((path.name,) for path in sorted(K8S.glob("components/*"))),
    ("external-redis", "tls", "bundle-volume", "worker-groups", "keda", "gcs-fault-tolerance", "monitoring"),
)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kubectl."""
    return kubectl(tmp_path_factory.mktemp("kubectl"))


@pytest.fixture(scope="session", params=(*FOLDERS, *COMBINATIONS), ids=str)
def manifests(
    request: pytest.FixtureRequest, program: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Manifest]:
    """The objects of each kustomization in turn."""
    if isinstance(request.param, str):
        return build(program, K8S / request.param)
    return with_components(program, tmp_path_factory.mktemp("combined"), *request.param)


@pytest.fixture(scope="session", params=("base", *FOLDERS[2:]))
def mesh(request: pytest.FixtureRequest, program: Path) -> list[Manifest]:
    """The objects of each kustomization that is a whole mesh."""
    return build(program, K8S / request.param)
