"""Prometheus with the rules of deploy/prometheus, in which time runs faster, and what it says of alerts."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from .network import DECODER, ENCODERS, GATEWAYS, HEAD, address
from .programs import start, until
from .ray_nodes import ROOT

SPEED = 20  # by how much the rules' windows and delays are shorter than those of deploy/prometheus/rules.yaml
LIMITS = {'le="2.0"': 'le="10.0"', 'le="0.25"': 'le="1.0"'}  # of first tokens and of steps, for two shared cores
URL = "http://127.0.0.1:9090"
UNITS = {"m": 60, "h": 3600}
QUIET_SECONDS = 6.0  # between two firings of an alert that count as one


@dataclass(frozen=True, slots=True)
class Firing:
    """An alert that fired, by its name and what it was about; Unix times. `ended` is None while it fires."""

    alert: str
    about: str
    started: float
    ended: float | None


def faster(rules: str) -> str:
    """Return rules whose windows and delays are SPEED times shorter."""

    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{int(found[2]) * UNITS[found[3]] // SPEED}s{found[4]}"

    for old, new in LIMITS.items():
        rules = rules.replace(old, new)
    rules = re.sub(r"(\[)(\d+)([mh])(\])", shorter, rules)
    return re.sub(r"(for: )(\d+)([mh])()", shorter, rules)


def configuration(rules: Path) -> dict[str, Any]:
    """Return the configuration: that of docs/metrics.md, at short intervals."""
    relabel = [
        {"source_labels": ["__name__"], "regex": "ray_(autoglm|serve)_.+", "action": "keep"},
        {"regex": "SessionName|Version|otel_scope_.+", "action": "labeldrop"},
    ]
    return {
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": "autoglm-gateway",
                "static_configs": [{"targets": [f"{address(name)}:8000" for name in GATEWAYS]}],
            },
            {
                "job_name": "autoglm-ray",
                "scrape_interval": "5s",
                "scrape_timeout": "5s",
                "static_configs": [{"targets": [f"{address(node)}:8080" for node in (HEAD, ENCODERS, DECODER)]}],
                "metric_relabel_configs": relabel,
            },
        ],
    }


def run_prometheus(folder: Path) -> "subprocess.Popen[bytes]":
    """Start Prometheus, and return when it is ready."""
    rules, config = folder / "rules.yaml", folder / "prometheus.yaml"
    rules.write_text(faster((ROOT / "deploy/prometheus/rules.yaml").read_text(encoding="utf-8")))
    config.write_text(yaml.safe_dump(configuration(rules)))
    options = {
        "config.file": str(config),
        "storage.tsdb.path": str(folder / "prometheus"),
        "web.listen-address": "127.0.0.1:9090",
        "query.lookback-delta": "15s",
    }
    command = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
    process = start(command, folder / "prometheus.log")
    until(_is_ready, "Prometheus is ready")
    return process


def _is_ready() -> bool:
    try:
        return httpx.get(f"{URL}/-/ready", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def firing() -> set[str]:
    """Return the names of the alerts that fire."""
    found = httpx.get(f"{URL}/api/v1/alerts", trust_env=False, timeout=30).raise_for_status().json()
    return {alert["labels"]["alertname"] for alert in found["data"]["alerts"] if alert["state"] == "firing"}


def fired(since: float, until_time: float) -> list[Firing]:
    """Return every alert that fired between two times, in the order in which they did."""
    query = {"query": 'ALERTS{alertstate="firing"}', "start": str(since), "end": str(until_time), "step": "1"}
    found = httpx.get(f"{URL}/api/v1/query_range", params=query, trust_env=False, timeout=60).raise_for_status()
    firings = [
        firing
        for series in found.json()["data"]["result"]
        for firing in _firings(series["metric"], [float(at) for at, _ in series["values"]], until_time)
    ]
    return sorted(firings, key=lambda firing: firing.started)


def _firings(labels: dict[str, str], times: list[float], now: float) -> list[Firing]:
    """Return the intervals in which a series of ALERTS has values."""
    about = ", ".join(labels[name] for name in ("application", "instance", "deployment") if name in labels)
    intervals = list[list[float]]()
    for at in times:
        if intervals and at - intervals[-1][1] <= QUIET_SECONDS:
            intervals[-1][1] = at
        else:
            intervals.append([at, at])
    return [
        Firing(labels["alertname"], about, first, last if now - last > QUIET_SECONDS else None)
        for first, last in intervals
    ]
