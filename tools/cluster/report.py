"""What the run found, as Markdown and JSON in benchmarks/results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from autoglm.bench.smoke.report import machine_lines, write
from autoglm.training.measured import short

from .accounting import MethodAccount, untyped
from .alerts import LIMITS, SPEED, Firing
from .faults import PRE_STOP_SECONDS
from .load import NO_CONNECTION, RATE, TIMEOUT, Ended
from .ray_nodes import DRAIN_SECONDS, ROOT
from .redis_servers import DOWN_MS
from .timeline import Passage, outcomes

RESULTS = ROOT / "benchmarks/results"


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """All that was seen; `differing` are series in which metrics and logs of gateways differ."""

    passages: Sequence[Passage]
    ended: Sequence[Ended]
    accounts: Sequence[MethodAccount]
    firings: Sequence[Firing]
    differing: Mapping[str, int]

    def alerts_of(self, passage: Passage) -> list[str]:
        """Return the names of the alerts that began to fire in a passage."""
        return list(dict.fromkeys(f.alert for f in self.firings if passage.started <= f.started < passage.ended))

    def faults(self) -> list[str]:
        """Return what should not be, a line each."""
        lines = [f"{each.outcome}: {each.api} {each.method} at {each.gateway}" for each in untyped(self.ended)]
        for account in self.accounts:
            if account.missing or account.differing:
                lines.append(f"{account.method}: {account.missing} missing, {account.differing} with another code")
        lines += [f"{series}: metrics and log differ by {by}" for series, by in self.differing.items()]
        lines += [f"{each.name}: not whole again" for each in self.passages if each.whole is None]
        return lines + [f"{each.alert} {each.about} still fires" for each in self.firings if each.ended is None]


def as_markdown(found: Mapping[str, Any], run: ClusterRun) -> str:
    """Return the tables with their conditions."""
    sent = [each for each in run.ended if each.outcome != NO_CONNECTION]
    missing = sum(account.missing for account in run.accounts)
    lines = [
        f"# {found['benchmark']}, {found['date']}",
        "",
        *machine_lines(found),
        "- Machines are network namespaces: Ray's head; a node with the encoders and a decoder; a node with a decoder;"
        " two gateways; Redis with a replica and three Sentinels; Prometheus and clients. Two replicas of each"
        " application, GPUs faked",
        f"- Clients ask {RATE} times a second at random times, over HTTP (openai-python) and gRPC (autoglm.client),"
        f" without retries, with a timeout of {TIMEOUT:.0f} s",
        f"- Shorter than deployed: replicas stay reachable for {DRAIN_SECONDS} s after their end began, a gateway"
        f" leaves the clients' list {PRE_STOP_SECONDS:.0f} s before SIGTERM, Sentinel waits {DOWN_MS / 1000:.0f} s",
        f"- Alerts: the rules of deploy/prometheus with windows and delays {SPEED} times shorter, for"
        f" {', '.join(new for new in LIMITS.values())}",
        "",
        f"{len(sent)} requests, {missing} missing on either side, {len(untyped(run.ended))} without an answer or a"
        " typed error.",
        "",
        *timeline_table(run),
        "",
        "## Alerts",
        "",
        *alert_table(run),
        "",
        "## Requests by kind",
        "",
        *kind_table(sent),
        "",
        "## Both sides",
        "",
        "Gateways count by their access logs, in which a request has its id; the metrics of those that still run at the"
        f" end {'differ: ' + str(dict(run.differing)) if run.differing else 'have the same numbers'}.",
        "",
        "| API | Method | Clients sent | Gateways have | Missing | Other code |",
        "|---|---|---|---|---|---|",
        *(
            f"| {each.api} | {each.method} | {each.sent} | {each.logged} | {each.missing} | {each.differing} |"
            for each in run.accounts
        ),
    ]
    return "\n".join(lines) + "\n"


COLUMNS = {
    "at": "At",
    "what": "What",
    "requests": "Requests",
    "errors": "Errors",
    "last_failure": "Last failure after",
    "whole": "Whole again after",
    "slowest": "Slowest request",
    "alerts": "Alerts",
}


def timeline(run: ClusterRun) -> list[dict[str, str]]:
    """Return what was done and what clients saw of it, a row each by the names of COLUMNS."""
    start = run.passages[0].started
    return [
        {
            "at": clock(each.started - start),
            "what": each.name,
            "requests": str(len(each.requests(run.ended))),
            "errors": outcomes(each.failures(run.ended)),
            "last_failure": seconds(each.last_failure(run.ended)),
            "whole": "not" if each.whole is None else seconds(each.whole - each.started or None),
            "slowest": seconds(each.slowest(run.ended)),
            "alerts": ", ".join(run.alerts_of(each)) or "–",
        }
        for each in run.passages
    ]


def timeline_table(run: ClusterRun) -> list[str]:
    """Return the same as a table."""
    rows = [list(row.values()) for row in timeline(run)]
    return [f"| {' | '.join(cells)} |" for cells in (COLUMNS.values(), ["---"] * len(COLUMNS), *rows)]


def seconds(value: float | None) -> str:
    """Return seconds in words."""
    return "–" if value is None else f"{value:.0f} s"


def alert_table(run: ClusterRun) -> list[str]:
    """Return the table of the alerts that fired."""
    start = run.passages[0].started
    lines = ["| Alert | About | Fired at | Cleared after |", "|---|---|---|---|"]
    for each in run.firings:
        cleared = "fires" if each.ended is None else f"{each.ended - each.started:.0f} s"
        lines.append(f"| {each.alert} | {each.about or '–'} | {clock(each.started - start)} | {cleared} |")
    return lines


def kind_table(sent: Sequence[Ended]) -> list[str]:
    """Return the table of kinds of requests: how many, how many ended as they should, and how long they took."""
    lines = ["| Kind | API | Sent | As expected | Errors | Median, s |", "|---|---|---|---|---|---|"]
    for name, api in sorted({(each.kind, each.api) for each in sent}):
        some = [each for each in sent if (each.kind, each.api) == (name, api)]
        good = [each for each in some if each.expected]
        took = short(median(each.ended - each.started for each in good)) if good else "–"
        failed = outcomes([each for each in some if not each.expected])
        lines.append(f"| {name} | {api} | {len(some)} | {len(good)} | {failed} | {took} |")
    return lines


def clock(seconds: float) -> str:
    """Return minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def write_report(found: Mapping[str, Any], run: ClusterRun) -> Path:
    """Write both files; return the path of the Markdown."""
    measured = {name: [asdict(each) for each in getattr(run, name)] for name in ("passages", "accounts", "firings")}
    failed = [asdict(each) for each in run.ended if not each.expected]
    counts = {"requests": len(run.ended), "failed": failed, "faults": run.faults(), "differing": dict(run.differing)}
    counts |= {"timeline": timeline(run)}
    text = json.dumps({**found, **measured, **counts}, indent=2, ensure_ascii=False) + "\n"
    return write(RESULTS, "cluster", found, text, as_markdown(found, run))
