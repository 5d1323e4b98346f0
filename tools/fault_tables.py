"""Writes what faults and hostile requests do into docs/operate.md and docs/security.md, from the last measurements.

`python tools/fault_tables.py --check` changes nothing and fails when a page says something else. The measurements are
those of `python -m tests.faults.outages`, `python -m tests.faults.neighbours` and `python -m tools.cluster`, in
benchmarks/results.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pages import ROOT, write_or_check

RESULTS = ROOT / "benchmarks" / "results"
Row = Mapping[str, Any]
OUTAGES = ("Fault", "Requests over HTTP", "Calls over gRPC", "Answers being streamed", "Last failure after")
NEIGHBOURS = (
    "Another client sends",
    "It gets",
    "Others' time between tokens, p99",
    "their longest",
    "Their longest short question",
)


CLUSTER = {
    "at": "At",
    "what": "What",
    "requests": "Requests",
    "errors": "Errors",
    "last_failure": "Last failure after",
    "whole": "Whole again after",
    "alerts": "Alerts",
}


def outage(row: Row) -> list[str]:
    """Return the cells of a fault: what clients saw besides answers, most frequent first."""
    seconds = f"{row['seconds']:.0f} s" if row["seconds"] else "–"
    after = seconds if row["recovered"] else "start the mesh again"
    return [row["fault"], seen(row["http"], "ok"), seen(row["grpc"], "ok"), seen(row["streams"], "whole"), after]


def seen(outcomes: Mapping[str, int], good: str) -> str:
    """Return the outcomes that are not `good`."""
    return ", ".join(outcome for outcome in outcomes if outcome != good) or "no error"


def neighbour(row: Row) -> list[str]:
    """Return the cells of an attack, with the neighbour's figures without it and with it."""
    alone, noisy = row["alone"], row["noisy"]
    gaps, longest, questions = (
        f"{alone[key]:.0f} → {noisy[key]:.0f} ms" for key in ("p99", "longest", "question_longest")
    )
    return [row["name"], ", ".join(row["outcomes"]), f"{gaps} (× {row['ratio']:.1f})", longest, questions]


def table(name: str, columns: Sequence[str], rows: str, cells: Callable[[Row], list[str]]) -> str:
    """Return the table of the last measurement of this name, with a link to all of it."""
    path = max(RESULTS.glob(f"{name}-[0-9]*.json"))
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"| {' | '.join(cells(row))} |" for row in found[rows]]
    machine = f"{found['machine']['cpu']}, {found['machine']['cores']} cores, {found['date']}"
    link = f"[All figures](../benchmarks/results/{path.stem}.md): {machine}."
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *lines, "", link])


def written(page: str, name: str, text: str) -> str:
    """Return the page with `text` between its marks of this name."""
    start, end = f"<!-- `tools/fault_tables.py` writes {name} -->", "<!-- up to here -->"
    pattern = rf"({re.escape(start)}\n).*?({re.escape(end)})"
    fresh, count = re.subn(pattern, lambda found: f"{found[1]}{text}\n{found[2]}", page, flags=re.S)
    assert count == 1, f"there is no place for {name}"
    return fresh


def main() -> None:
    """Rewrite the tables, or with --check compare them."""
    operate, security = ROOT / "docs" / "operate.md", ROOT / "docs" / "security.md"
    text = written(operate.read_text(encoding="utf-8"), "outages", table("outages", OUTAGES, "outages", outage))
    cluster = table("cluster", list(CLUSTER.values()), "timeline", lambda row: [row[name] for name in CLUSTER])
    write_or_check(operate, written(text, "cluster", cluster))
    noise = table("neighbours", NEIGHBOURS, "results", neighbour)
    write_or_check(security, written(security.read_text(encoding="utf-8"), "neighbours", noise))


if __name__ == "__main__":
    main()
