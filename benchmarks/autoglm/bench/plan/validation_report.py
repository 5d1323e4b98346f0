"""Simulated and measured latency, as JSON and as tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from autoglm.bench.plan.validation import MIX, SIMULATED, RateComparison
from autoglm.bench.smoke.report import machine_lines
from autoglm.bench.stages.bench import MeasuredStages

COLUMNS = (
    ("TTFT, ms", ("ttft_p50_ms", "ttft_p99_ms")),
    ("Between tokens, ms", ("itl_p50_ms", "itl_p99_ms")),
)


def as_json(found: Mapping[str, Any], measured: MeasuredStages, rows: Sequence[RateComparison]) -> str:
    """Return everything as JSON, the costs that were measured for it included."""
    figures = {"costs": measured.costs.model_dump(), "rows": [asdict(row) for row in rows]}
    return json.dumps({**found, **figures}, indent=2) + "\n"


def as_markdown(found: Mapping[str, Any], rows: Sequence[RateComparison]) -> str:
    """Return the tables with what it takes to read them."""
    mix = ", ".join(f"{share:.0%} {name}" for name, share in MIX.items())
    figures = "p50, measured | simulated | error | p99, measured | simulated | error"
    lines = [
        f"# {found['benchmark']}, {found['date']}",
        "",
        *machine_lines(found),
        f"- Model {found['model']}, one mesh, the load generator on the same machine; {found['seconds']} s at each "
        f"rate, Poisson arrivals, {mix}; every medium is new",
        "- Costs were measured just before, in one process and with single requests to the same mesh; nothing is "
        f"fitted to the rates below; {SIMULATED} requests are simulated at each",
        f"- The client was up to {1000 * max(row.late_s for row in rows):.0f} ms behind its schedule, which counts as "
        "latency",
        "",
    ]
    for title, names in COLUMNS:
        lines += [f"| {title}: requests/s | Requests | {figures} |", "|---|---|" + "---|" * 6]
        for row in rows:
            pairs = " | ".join(_pair(row, name) for name in names)
            lines.append(f"| {row.rate:g} | {row.requests} | {pairs} |")
        lines.append("")
    return "\n".join(lines)


def _pair(row: RateComparison, name: str) -> str:
    measured, expected = getattr(row.measured, name), getattr(row.simulated, name)
    return f"{measured:.1f} | {expected:.1f} | {expected / measured - 1:+.0%}"
