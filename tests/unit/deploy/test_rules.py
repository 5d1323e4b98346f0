"""The recording rules and alerts: each query can be parsed and asks for what there is; each alert is explained and
tested. promtool, which no package index has, runs the tests in rules-test.yaml; see docs/operate.md."""

import re
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client import Histogram

from autoglm.gateway.metrics import GatewayMetrics

from .kustomize import ROOT, Manifest, of_kind, with_components
from .queries import check_query, selectors

FOLDER = ROOT / "deploy/prometheus"
GROUPS = yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
GUIDE = (ROOT / "docs/operate.md").read_text(encoding="utf-8")
TESTS = (FOLDER / "rules-test.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_query_asks_for_metrics_and_labels_that_exist(rule: Manifest) -> None:
    check_query(rule["expr"], RECORDED)


def test_the_names_in_queries_are_found() -> None:
    query = 'sum by (a) (rate(x{b="1"}[5m])) / y > 0.1 and absent(z) or time() - w'
    assert {selector.name for selector in selectors(promql_parser.parse(query))} == {"x", "y", "z", "w"}


def test_limits_of_objectives_are_buckets() -> None:
    histograms = {"first_token": GatewayMetrics().first_token, "inter_token": GatewayMetrics().next_token}
    limits = re.findall(r'autoglm_(?:time_to_)?(\w+_token)\w*_bucket\{le="([\d.]+)"', yaml.safe_dump(RULES, width=999))
    assert {name for name, _ in limits} == set(histograms)
    for name, limit in limits:
        histogram: Histogram = histograms[name]
        (family,) = histogram.collect()
        assert limit in {sample.labels.get("le") for sample in family.samples}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_is_explained_and_tested(alert: Manifest) -> None:
    name, notes = alert["alert"], alert["annotations"]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert re.fullmatch(r"\d+m", alert["for"])
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert notes["runbook_url"] == f"docs/operate.md#{name.lower()}"
    assert f"\n### {name}\n" in GUIDE
    assert f'alertname="{name}"' in TESTS


def test_the_guide_explains_no_alert_that_does_not_exist() -> None:
    assert set(re.findall(r"^### (Autoglm\w+)$", GUIDE, re.MULTILINE)) == {alert["alert"] for alert in ALERTS}


def test_the_address_of_the_guide_can_be_set(program: Path, tmp_path: Path) -> None:
    """As docs/monitoring.md says, for Prometheus and for a PrometheusRule."""
    page = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    (edit,), (patch,) = (
        re.findall(r"^sed '(.*)' deploy", page, re.MULTILINE),
        re.findall(r"```yaml\n(.*?)```", page, re.S),
    )
    edited = subprocess.run(["sed", edit, FOLDER / "rules.yaml"], capture_output=True, text=True, check=True).stdout
    build = with_components(program, tmp_path, "monitoring", **yaml.safe_load(patch))
    (rule,) = of_kind(build, "PrometheusRule")
    assert "autoglm-runbook" not in str(build)
    wanted = {f"https://docs.example.com/autoglm/{alert['annotations']['runbook_url']}" for alert in ALERTS}
    for groups in (yaml.safe_load(edited)["groups"], rule["spec"]["groups"]):
        alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
        assert {alert["annotations"]["runbook_url"] for alert in alerts} == wanted


def test_the_page_shows_what_prometheus_said_of_every_rule() -> None:
    """`python -m tests.monitoring` writes it."""
    page = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| ([\w:]+) \| (?:\d+ series|inactive|pending|firing) \|$", page, re.MULTILINE)
    assert sorted(shown) == sorted(rule.get("alert") or rule["record"] for rule in RULES)


def test_a_cluster_has_the_same_rules(program: Path, tmp_path: Path) -> None:
    (rule,) = of_kind(with_components(program, tmp_path, "monitoring"), "PrometheusRule")
    assert rule["spec"]["groups"] == GROUPS
