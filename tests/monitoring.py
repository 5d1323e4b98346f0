"""Whether dashboards and alerts show what a mesh does: python -m tests.monitoring writes docs/monitoring.md's tables.

It starts a mesh, a second gateway and a Prometheus, sends requests of every kind, and asks Prometheus the query of
every panel of deploy/grafana and every rule of deploy/prometheus. The exit status is 1 if a panel or rule is empty or
wrong, and the page is then not written.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import promql_parser

from .gateway import running_gateway
from .mesh import Mesh, running_mesh
from .monitored_load import MediaServer, key_file, running_media_server, send_everything
from .prometheus import ROOT, RULES, RULES_TEST, NotInstalled, Prometheus, Targets, promtool, running_prometheus
from .waiting import eventually

PAGE = ROOT / "docs/monitoring.md"
DASHBOARDS = ROOT / "deploy/grafana"
ROUNDS = 6  # of load, at most
SCRAPES = 5  # that follow a round: an agent of Ray's may have its figures 4 s later
# Grafana's variables: "All" of the namespaces, and the range of a rate.
VARIABLES = {"$namespace": ".*", "$__rate_interval": "5m"}
# Panels that are empty here, and why. One that is not empty is a fault too.
EMPTY_HERE: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel of a dashboard: its queries, as Grafana sends them."""

    dashboard: str
    title: str
    queries: Sequence[str]

    @property
    def name(self) -> str:
        """What EMPTY_HERE calls it."""
        return f"{self.dashboard}: {self.title}"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table, and what is wrong, if anything is."""

    cells: Sequence[str]
    fault: str = ""

    def __str__(self) -> str:
        return "| " + " | ".join((*self.cells, *([f"**{self.fault}**"] if self.fault else []))) + " |"


def panels() -> Iterator[Panel]:
    """Yield every panel of every dashboard."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        for each in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            if each["type"] != "row":
                yield Panel(path.stem, each["title"], [as_sent(target["expr"]) for target in each["targets"]])


def as_sent(query: str) -> str:
    """Return a panel's query with the values of Grafana's variables."""
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


def panel_row(prometheus: Prometheus, panel: Panel) -> Row:
    """Ask a panel's queries; it is empty when one of them has no series."""
    answers = [prometheus.values(query) for query in panel.queries]
    is_empty, reason = not all(answers), EMPTY_HERE.get(panel.name)
    counts = " + ".join(str(len(values)) for values in answers)
    moved = " + ".join(str(sum(value != 0 for value in values)) for values in answers)
    fault = "empty" if is_empty and reason is None else "not empty" if not is_empty and reason is not None else ""
    return Row((panel.dashboard, panel.title, reason or counts, "" if reason else moved), fault)


def rule_row(prometheus: Prometheus, rule: Mapping[str, Any]) -> Row:
    """Look at a rule: it is evaluated, and asks for series that there are."""
    name, query = rule["name"], rule["query"]
    missing = [selector for selector in selectors(query) if not prometheus.values(selector)]
    if rule["health"] != "ok":
        fault = rule.get("lastError") or rule["health"]
    elif missing:
        fault = f"nothing is called {', '.join(missing)}"
    elif rule["type"] == "recording":
        fault = "" if prometheus.values(name) else "records nothing"
    else:
        fault = rule["state"] if "absent(" in query and rule["state"] != "inactive" else ""
    count = len(prometheus.values(query))
    return Row((name, f"{count} series" if rule["type"] == "recording" else rule["state"]), fault)


def selectors(query: str) -> set[str]:
    """Return each selector of a query, with any values of its labels."""
    found = set[str]()
    _collect(promql_parser.parse(query), found)
    return found


def _collect(node: Any, found: set[str]) -> None:
    if isinstance(node, promql_parser.VectorSelector):
        labels = ",".join(f'{matcher.name}!=""' for matcher in node.matchers.matchers)
        found.add(f"{node.name}{{{labels}}}")
    for name in ("expr", "lhs", "rhs", "vector_selector", "vs"):
        if (child := getattr(node, name, None)) is not None:
            _collect(child, found)
    for child in getattr(node, "args", ()):
        _collect(child, found)


@contextmanager
def monitored_mesh(folder: Path) -> Iterator[tuple[Mesh, str, MediaServer, Prometheus]]:
    """A mesh, the address of a second gateway, a server with media, and a Prometheus that scrapes both gateways."""
    keys = key_file(folder)
    with (
        running_media_server(folder) as media,
        running_mesh(folder / "serve.log", AUTOGLM_API_KEYS_FILE=keys, **media.environment) as mesh,
        running_gateway(mesh, redis_url=mesh.redis_url, api_keys_file=keys) as second,
    ):
        agent = next(line for line in mesh.lines() if "Service metrics at " in line).split(" at ")[1]
        gateways = [urlsplit(url).netloc for url in (mesh.http_url, second)]
        targets: Targets = {"autoglm-gateway": gateways, "autoglm-ray": [urlsplit(agent).netloc]}
        with running_prometheus(folder, targets) as prometheus:
            yield mesh, second, media, prometheus


def measure(folder: Path) -> tuple[Sequence[Row], Sequence[Row]]:
    """Return a row for each panel and for each rule, after as much load as it takes to fill them, or ROUNDS."""
    with monitored_mesh(folder) as (mesh, second, media, prometheus):
        wait_for_scrapes(prometheus)
        for number in range(ROUNDS):
            send_everything(mesh, second, media, number)
            wait_for_scrapes(prometheus)
            rows = [panel_row(prometheus, panel) for panel in panels()]
            rules = [rule_row(prometheus, rule) for rule in prometheus.rules()]
            faults = [f"{row.cells[0]} {row.cells[1]}: {row.fault}" for row in (*rows, *rules) if row.fault]
            print(f"round {number + 1} of load: {', '.join(faults) or 'nothing is wrong'}", flush=True)
            if not faults:
                break
        return rows, rules


def wait_for_scrapes(prometheus: Prometheus) -> None:
    """Return once what has happened until now is in Prometheus."""
    before = prometheus.scrapes()
    eventually(lambda: prometheus.scrapes() >= before + SCRAPES, "every target is scraped")


def table(head: Sequence[str], rows: Sequence[Row]) -> str:
    """Return a table."""
    return "\n".join(("| " + " | ".join(head) + " |", "|---" * len(head) + "|", *map(str, rows))) + "\n"


def page(tables: Sequence[str]) -> str:
    """Return docs/monitoring.md with new tables, which are told by their first lines."""
    text = PAGE.read_text(encoding="utf-8")
    for new in tables:
        (old,) = re.findall(rf"{re.escape(new.partition(chr(10))[0])}\n(?:\|.*\n)+", text)
        text = text.replace(old, new)
    return text


def main() -> int:
    """Check, print and write; return the exit status."""
    try:
        said = promtool("check", "rules", RULES) + promtool("test", "rules", RULES_TEST)
        print("promtool: " + " ".join(said.split()), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            rows, rules = measure(Path(folder))
    except NotInstalled as error:
        print(f"tests.monitoring: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"tests.monitoring: {error.stdout}{error.stderr}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tests.monitoring: stopped; nothing was written", file=sys.stderr)
        return 130
    tables = [table(("Dashboard", "Panel", "Series", "Not 0"), rows), table(("Rule", "Result"), rules)]
    print("\n".join(tables))
    faults = sum(bool(row.fault) for row in (*rows, *rules))
    if faults:
        print(f"tests.monitoring: {faults} are empty or wrong; {PAGE.name} stays as it is", file=sys.stderr)
        return 1
    PAGE.write_text(page(tables), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
