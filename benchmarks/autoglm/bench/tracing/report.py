"""The results of `autoglm bench tracing`, as JSON and as a table."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from autoglm.bench.smoke.report import machine_lines
from autoglm.bench.tracing.bench import OFF, TracingCosts
from autoglm.training.measured import Figure


def as_json(found: Mapping[str, Any], costs: TracingCosts) -> str:
    """Return everything as JSON."""
    return json.dumps({**found, **asdict(costs)}, indent=2, ensure_ascii=False) + "\n"


def as_markdown(found: Mapping[str, Any], costs: TracingCosts) -> str:
    """Return the table with what it takes to read it."""
    lines = [
        f"# {found['benchmark']}, {found['date']}",
        "",
        *machine_lines(found),
        f"- Three gateways in front of one stub take turns in random order, {found['rounds']} rounds; in each turn a"
        f" gateway gives {found['requests']} answers of {found['words']} words, {found['at_a_time']} at a time",
        "- CPU time of the gateway's processes, with that of sending spans to a collector that drops them; figures are"
        " medians (least–most), ratios are taken round by round",
        "",
        "| Traces | CPU, ms an answer | × off |",
        "|---|---|---|",
        *(_row(name, costs) for name in costs.milliseconds),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, costs: TracingCosts) -> str:
    ratio = "" if name == OFF else str(Figure.of(costs.ratios(name)))
    return f"| {name} | {Figure.of(costs.milliseconds[name])} | {ratio} |"
