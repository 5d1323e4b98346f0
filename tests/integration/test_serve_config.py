"""deploy/serve.yaml comes up as it is, deployed by Ray's REST API, with the variables of deploy/k8s."""

import json
import subprocess
import sys
import tempfile

from ..asking import Asker

# A user, network and process namespace: every port is free, no other mesh is seen, and all ends with the program.
APART = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")


def test_the_serve_config_deployed_as_a_cluster_does_answers_as_a_laptop(ask: Asker) -> None:
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # a short path, for the sockets in it
        command = [*APART, sys.executable, "-m", "tests.deployed", folder]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["answer"] == ask("你是谁?")
