"""The dashboards: they are those of tools/dashboards.py, and each panel asks for something that there is."""

import json
import re
from pathlib import Path
from typing import Any

import dashboards
import pytest

from .kustomize import ROOT, named, with_components
from .queries import check_query
from .test_rules import RECORDED

PAGE = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
FILES = dashboards.files()
BOARDS: dict[str, dict[str, Any]] = {path.stem: json.loads(text) for path, text in FILES.items()}
PANELS = {
    f"{name}: {panel['title']} {number}": panel
    for name, board in BOARDS.items()
    for number, panel in enumerate(board["panels"])
    if panel["type"] != "row"
}


def test_the_files_are_current() -> None:
    assert {path: path.read_text(encoding="utf-8") for path in sorted(dashboards.FOLDER.iterdir())} == FILES


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_asks_for_metrics_and_labels_that_exist(name: str) -> None:
    panel = PANELS[name]
    assert panel["targets"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert 'namespace=~"$namespace"' in target["expr"]
        check_query(target["expr"].replace("$__rate_interval", "5m"), RECORDED)


def test_panels_lie_side_by_side() -> None:
    for board in BOARDS.values():
        places = [tuple(panel["gridPos"][side] for side in "xywh") for panel in board["panels"]]
        taken = [(x + i, y + j) for x, y, width, height in places for i in range(width) for j in range(height)]
        assert len(set(taken)) == len(taken)
        assert max(x for x, _ in taken) < 24


def test_a_cluster_has_the_same_dashboards(program: Path, tmp_path: Path) -> None:
    made = named(with_components(program, tmp_path, "monitoring"), "ConfigMap", "autoglm-dashboards")
    assert made["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert made["data"] == {f"autoglm-{path.name}": text for path, text in FILES.items()}
    # `kubectl apply` keeps what it sends in an annotation, of which Kubernetes takes 256 KiB; and 1 MiB of a ConfigMap.
    assert len(json.dumps(made)) < 200 * 1024


def test_the_page_shows_what_prometheus_said_of_every_panel() -> None:
    """`python -m tests.monitoring` writes it."""
    shown = re.findall(r"^\| (\w+) \| ([^|]+) \| [\d +]+ \| [\d +]+ \|$", PAGE, re.MULTILINE)
    assert shown == [(name, panel["title"]) for name in sorted(BOARDS) for panel in panels_of(name)]


def panels_of(name: str) -> list[dict[str, Any]]:
    return [panel for panel in BOARDS[name]["panels"] if panel["type"] != "row"]


def test_dashboards_are_told_apart() -> None:
    assert len({board["uid"] for board in BOARDS.values()}) == len({board["title"] for board in BOARDS.values()}) == 5
