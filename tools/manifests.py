"""Writes what deploy/k8s takes from the code: python tools/manifests.py, or with --check, which only compares.

From deploy/serve.yaml: serveConfigV2 of the base and of each overlay, with what its `serve-changes.yaml` changes.
From deploy/prometheus/rules.yaml: the PrometheusRule. From deploy/grafana: the ConfigMap with the dashboards.
From AUTOGLM_MAX_TIMEOUT in base/settings.env: the variables of Ray, and how long what ends waits for running answers.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from autoglm.common.deadlines import grace_seconds
from autoglm.common.ray_environment import ray_environment
from autoglm.common.ray_internals import SETUP_HOOK

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "deploy/k8s/base"
MONITORING = ROOT / "deploy/k8s/components/monitoring"
PRE_STOP_SECONDS = 10  # until no Service sends new connections to a gateway that ends
# A node that loses power counts as dead after some 20 s instead of 50. Until then its replicas count as running, and
# what is meant for them waits.
VANISHED_NODES = {"RAY_health_check_timeout_ms": "5000", "RAY_health_check_failure_threshold": "3"}
NOTE = "# Written by tools/manifests.py.\n"
GATEWAY = "apps/v1", "Deployment", "autoglm-gateway"
RAY = "ray.io/v1", "RayService", "autoglm"


def files() -> Iterator[tuple[Path, str]]:
    """Yield each file and its text."""
    settings = dict(line.split("=", 1) for line in (BASE / "settings.env").read_text().splitlines())
    longest = float(settings["AUTOGLM_MAX_TIMEOUT"])
    grace = grace_seconds(longest)
    hook = {SETUP_HOOK: "autoglm.common.ray_internals.change_haproxy"}
    yield BASE / "generated/ray.env", variables(ray_environment(longest) | hook | VANISHED_NODES)
    yield BASE / "generated/gateway.env", variables({"AUTOGLM_DRAIN_TIMEOUT": settings["AUTOGLM_MAX_TIMEOUT"]})
    pods = {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": PRE_STOP_SECONDS + grace}}}}
    yield BASE / "generated/gateway-grace.yaml", NOTE + yaml.safe_dump(patch(*GATEWAY, pods), sort_keys=False)
    replaced = {"spec": {"rayClusterDeletionDelaySeconds": grace}}
    yield BASE / "generated/ray-grace.yaml", NOTE + yaml.safe_dump(patch(*RAY, replaced), sort_keys=False)
    for changes in sorted(ROOT.glob("deploy/k8s/overlays/*/serve-changes.yaml")):
        yield changes.parent / "generated/serve.yaml", serve_patch(yaml.safe_load(changes.read_text()))
    yield BASE / "generated/serve.yaml", serve_patch({})
    rules = {"spec": yaml.safe_load((ROOT / "deploy/prometheus/rules.yaml").read_text())}
    rule = patch("monitoring.coreos.com/v1", "PrometheusRule", "autoglm", rules)
    yield MONITORING / "generated/rules.yaml", NOTE + yaml.safe_dump(rule, sort_keys=False, width=120)
    yield MONITORING / "generated/dashboards.yaml", NOTE + dashboards()


class _Blocks(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, "|" if "\n" in data else None)


_Blocks.add_representer(str, _Blocks.represent_str)


def dashboards() -> str:
    """Return the ConfigMap that the sidecar of Grafana's Helm chart finds by its label."""
    texts = {f"autoglm-{path.name}": path.read_text() for path in sorted((ROOT / "deploy/grafana").glob("*.json"))}
    made = patch("v1", "ConfigMap", "autoglm-dashboards", {"data": texts})
    made["metadata"]["labels"] = {"grafana_dashboard": "1"}
    return yaml.dump(made, Dumper=_Blocks, sort_keys=False, width=120)


def variables(named: Mapping[str, str]) -> str:
    """Return the text of a file of variables."""
    return NOTE + "".join(f"{name}={value}\n" for name, value in named.items())


def serve_patch(changes: Mapping[str, Any]) -> str:
    """Return the patch of the RayService with deploy/serve.yaml, changed."""
    config = yaml.safe_load((ROOT / "deploy/serve.yaml").read_text())
    unknown = set(changes) - {application["name"] for application in config["applications"]}
    if unknown:
        raise SystemExit(f"serve-changes.yaml names an application that deploy/serve.yaml has not: {sorted(unknown)}")
    for application in config["applications"]:
        changed = changes.get(application["name"], {})
        application["args"] |= changed.get("args", {})
        application |= {key: value for key, value in changed.items() if key != "args"}
    text = yaml.safe_dump(config, sort_keys=False)
    block = "".join(f"    {line}\n" for line in text.splitlines())
    head = yaml.safe_dump(patch(*RAY, {}), sort_keys=False)
    return f"{NOTE}{head}spec:\n  serveConfigV2: |\n{block}"


def patch(version: str, kind: str, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a merge patch of one object."""
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **content}


def main(check: bool) -> int:
    """Write or compare; return the exit status, 1 for a file that is not current."""
    old = [path for path, text in files() if not path.is_file() or path.read_text() != text]
    for path, text in files():
        if path in old and not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    for path in old:
        print(f"{path.relative_to(ROOT)}: {'not current, run python tools/manifests.py' if check else 'written'}")
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
