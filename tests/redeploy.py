"""Deploys applications of a running mesh again with other settings: python -m tests.redeploy GCS_ADDRESS NAME…

It runs in the environment of the mesh's process that owns Ray, and returns when the new replicas run.
"""

import subprocess
import sys
from dataclasses import replace

from autoglm.cli.mesh import ServeConfig, config_path, deploy

from .mesh import Mesh


def redeploy(mesh: Mesh, *names: str) -> "subprocess.Popen[bytes]":
    """Start this program on a mesh."""
    owner, raylet = mesh.running("autoglm.cli.mesh"), mesh.running("raylet/raylet")
    assert owner is not None
    assert raylet is not None
    (address,) = [part.partition("=")[2] for part in raylet.cmdline() if part.startswith("--gcs-address=")]
    return subprocess.Popen([sys.executable, "-m", __name__, address, *names], env=owner.environ())


def main(address: str, *names: str) -> None:
    """Give each application one more place in its queue, which is another version of it."""
    import ray

    ray.init(address=address, log_to_driver=False)
    deploy(
        [
            replace(application, args={**application.args, "max_queued_requests": 65})
            for application in ServeConfig.load(config_path()).applications
            if application.name in names
        ]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
