"""A Prometheus that scrapes a mesh as docs/metrics.md says, but each second; it is not in any package index."""

import math
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from autoglm.cli.isolation import free_ports

from .waiting import NET_SECONDS, eventually, is_answered

ROOT = Path(__file__).resolve().parents[1]
RULES, RULES_TEST = ROOT / "deploy/prometheus/rules.yaml", ROOT / "deploy/prometheus/rules-test.yaml"
PAGE = ROOT / "docs/metrics.md"
NOT_INSTALLED = (
    "{} is not on PATH. Debian's package prometheus has it (in sid, promtool is a package of its own)."
    " Without installing it: apt-get download prometheus && dpkg -x prometheus_*.deb FOLDER, and put FOLDER/usr/bin"
    " on PATH"
)

Targets = Mapping[str, Sequence[str]]


class NotInstalled(Exception):
    """A program is missing; the message says where to get it."""


def program(name: str) -> str:
    """Return the path of `prometheus` or `promtool`; raises NotInstalled."""
    found = shutil.which(name)
    if found is None:
        raise NotInstalled(NOT_INSTALLED.format(name))
    return found


def promtool(*arguments: str | Path) -> str:
    """Return what promtool prints; raises subprocess.CalledProcessError if it finds a fault, NotInstalled."""
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def values(self, query: str) -> list[float]:
        """Return the value of each series that answers a query, without those that are no number."""
        found = [float(series["value"][1]) for series in self._get("query", query=query)["result"]]
        return [value for value in found if math.isfinite(value)]

    def rules(self) -> Sequence[Mapping[str, Any]]:
        """Return each rule with its `health`, `lastError` and, of an alert, `state`."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def scrapes(self) -> float:
        """Return how often the target with the fewest scrapes was scraped successfully."""
        return min(self.values("sum_over_time(up[1h])"), default=0.0)

    def _get(self, path: str, **parameters: str) -> Any:
        response = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=NET_SECONDS, trust_env=False)
        content = response.json()
        assert content["status"] == "success", content
        return content["data"]


def config(targets: Targets) -> dict[str, Any]:
    """Return the configuration that docs/metrics.md shows, with other targets for its jobs."""
    (shown,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    jobs = yaml.safe_load(shown)["scrape_configs"]
    assert {job["job_name"] for job in jobs} == set(targets)
    for job in jobs:
        job["static_configs"] = [{"targets": list(targets[job["job_name"]])}]
    every_second = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    return {"global": every_second, "rule_files": [str(RULES)], "scrape_configs": jobs}


@contextmanager
def running_prometheus(folder: Path, targets: Targets) -> Iterator[Prometheus]:
    """Run a Prometheus in the block that scrapes addresses, by job, and evaluates our rules; `folder` keeps its data.

    Raises NotInstalled.
    """
    (port,) = free_ports(1)
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config(targets)))
    command = [program("prometheus"), f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage", "--log.level=warn"]
    process = subprocess.Popen(command)
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    try:
        eventually(
            lambda: process.poll() is not None or is_answered(f"{prometheus.url}/-/ready"), "Prometheus is ready"
        )
        yield prometheus
    finally:
        process.terminate()
        process.wait(NET_SECONDS)
