"""What `autoglm bench scaling` found, as JSON and as tables."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from autoglm.bench.scaling.bench import Level, ServiceScaling
from autoglm.bench.scaling.replicas import MAX_TOKENS
from autoglm.bench.smoke.report import machine_lines

WHAT = {
    "vision": "Screenshots of a phone",
    "speech": "Recordings of three seconds",
    "decoder": f"Conversations of about 128 tokens, answers of up to {MAX_TOKENS}",
}


def as_json(found: Mapping[str, Any], measured: Sequence[ServiceScaling]) -> str:
    """Return everything as JSON."""
    services = [asdict(each) | {"enough": each.enough.ongoing} for each in measured]
    return json.dumps({**found, "services": services}, indent=2, ensure_ascii=False) + "\n"


def as_markdown(found: Mapping[str, Any], measured: Sequence[ServiceScaling]) -> str:
    """Return the tables with what it takes to read them."""
    lines = [
        f"# {found['benchmark']}, {found['date']}",
        "",
        *machine_lines(found),
        f"- One replica of a service in this process with {found['threads']} CPU thread(s) for a pass, so many "
        "requests in progress at a time",
        f"- {found['rounds']} round(s) after one that warms up, levels in random order; a figure is the median "
        "(least–most)",
        *(line for each in measured for line in _table(each)),
    ]
    return "\n".join(lines) + "\n"


def _table(found: ServiceScaling) -> Iterator[str]:
    yield from ("", f"## {found.service}", f"{WHAT[found.service]}.", "")
    if found.service == "decoder":
        yield "| In progress | First token p50, ms | p95 | Whole answer p50, ms | p95 | Requests/s | CPU of one, ms |"
        yield "|---|---|---|---|---|---|---|"
    else:
        yield "| In progress | p50, ms | p95 | Requests/s | CPU of one, ms |"
        yield "|---|---|---|---|---|"
    yield from (_row(found.service, level) for level in found.levels)
    yield ""
    yield f"With {found.enough.ongoing} in progress each takes nearly the least CPU; more of them only wait."


def _row(service: str, level: Level) -> str:
    first = f"{level.first_p50} | {level.first_p95} | " if service == "decoder" else ""
    return f"| {level.ongoing} | {first}{level.last_p50} | {level.last_p95} | {level.rate} | {level.cpu} |"
