"""Deploys a Serve config on a running mesh, as Serve's REST API and so KubeRay does: python -m tests.redeploy ADDRESS.

The config comes from stdin as YAML. It runs in the environment of the mesh's process that owns Ray, and returns when
the config is accepted.
"""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml

from autoglm.cli.mesh import config_path

from .mesh import Mesh
from .waiting import NET_SECONDS, at_the_same_time


def redeploy(mesh: Mesh, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Deploy the mesh's own config again, with the `changes` of each application: other `args`, and further keys."""
    config = yaml.safe_load(config_path().read_text(encoding="utf-8"))
    for application in config["applications"]:
        changed = dict(changes.get(application["name"], {}))
        application["args"] |= changed.pop("args", {})
        application |= changed
    _apply(mesh, config)


@contextmanager
def asking(ask: Callable[[], str]) -> Iterator[list[str]]:
    """Ask again and again inside the block, and list what came."""
    seen = list[str]()

    def work(ended: threading.Event) -> None:
        while not ended.is_set():
            seen.append(ask())

    with at_the_same_time(work):
        yield seen


def _apply(mesh: Mesh, config: Mapping[str, Any]) -> None:
    owner, raylet = mesh.running("autoglm.cli.mesh"), mesh.running("raylet/raylet")
    assert owner is not None
    assert raylet is not None
    (address,) = [part.partition("=")[2] for part in raylet.cmdline() if part.startswith("--gcs-address=")]
    command = (sys.executable, "-m", __name__, address)
    subprocess.run(
        command, input=yaml.safe_dump(config), text=True, env=owner.environ(), check=True, timeout=NET_SECONDS
    )


def main(address: str) -> None:
    """Apply the config."""
    import ray
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    ray.init(address=address, log_to_driver=False)
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(ServeDeploySchema.model_validate(yaml.safe_load(sys.stdin)))


if __name__ == "__main__":
    main(*sys.argv[1:])
