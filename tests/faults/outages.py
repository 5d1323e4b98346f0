"""Measures what clients see of each fault, and for how long: python -m tests.faults.outages [NAME…]

It starts a mesh, causes each fault (those with a NAME in their name) while clients ask over HTTP and gRPC and three
answers are being streamed, and writes benchmarks/results/outages-<date>.json and .md.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoglm.bench.smoke.report import machine_lines, write
from autoglm.training.measured import conditions, short

from ..mesh import Mesh
from ..waiting import comes_true
from .attacker import ROOT
from .causes import FAULTS, Fault
from .clients import IN_A_ROW, PAUSE, TIMEOUT, Streams, Watcher, over_grpc, over_http

AT_LEAST, AT_MOST = 8.0, 60.0  # seconds that clients go on asking


@dataclass(frozen=True, slots=True)
class Outage:
    """What clients saw of a fault, how often, and the seconds after which nothing failed any more."""

    fault: str
    http: Mapping[str, int]
    grpc: Mapping[str, int]
    streams: Mapping[str, int]
    seconds: float
    recovered: bool
    note: str


def measure(mesh: Mesh, fault: Fault) -> Outage:
    """Cause a fault while clients ask, until all of them have had so many answers in a row."""
    watchers = [Watcher(over_http(mesh, fault.asks)), Watcher(over_grpc(mesh))]
    streams = Streams(mesh)
    streams.start()
    with ExitStack() as stack:
        for watcher in watchers:
            stack.enter_context(watcher.watching())
        undo = fault.cause(mesh)
        recovered = until_answered(mesh, watchers)
        streams.join()
        note = undo() if mesh.process.poll() is None else "the mesh ended"
    http, calls = (dict(watcher.seen.most_common()) for watcher in watchers)
    seconds = max(watcher.last_failure for watcher in watchers)
    return Outage(fault.name, http, calls, dict(streams.ends.most_common()), seconds, recovered, note)


def until_answered(mesh: Mesh, watchers: Sequence[Watcher]) -> bool:
    """Wait until all are answered again, or the mesh has ended, or for as long as clients go on asking; return whether
    they are."""
    started = time.monotonic()

    def are_answered() -> bool:
        enough = time.monotonic() - started > AT_LEAST  # a fault may show only after some seconds
        return enough and all(watcher.in_a_row >= IN_A_ROW for watcher in watchers)

    comes_true(lambda: are_answered() or mesh.process.poll() is not None, AT_MOST)
    return mesh.process.poll() is None and are_answered()


def run(folder: Path, faults: Sequence[Fault]) -> Iterator[Outage]:
    """Measure the faults one after the other, in one mesh as long as it lives."""
    mesh = None
    try:
        for number, fault in enumerate(faults):
            mesh = whole(mesh, folder / f"{number}.log")
            yield measure(mesh, fault)
    finally:
        if mesh is not None:
            mesh.end()


def whole(mesh: Mesh | None, log: Path) -> Mesh:
    """Return `mesh` once all of it is up, or another if it does not come back."""
    if mesh is not None:
        if comes_true(lambda: mesh.process.poll() is not None or mesh.is_whole(), AT_MOST) and mesh.is_whole():
            return mesh
        mesh.end()
    started = Mesh.start(log)
    started.wait()
    return started


HEAD = """\
| Fault | Requests over HTTP | Calls over gRPC | Answers that were being streamed | Last failure after, s |
|---|---|---|---|---|"""


def row(outage: Outage) -> str:
    """Return an outage as a line of the table."""
    name = outage.fault + (f" ({outage.note})" if outage.note else "")
    cells = [name, *map(counted, (outage.http, outage.grpc, outage.streams))]
    last = short(outage.seconds) if outage.seconds else "–"
    return "| " + " | ".join([*cells, last if outage.recovered else "for good"]) + " |"


def counted(seen: Mapping[str, int]) -> str:
    """Return what was seen and how often, in words."""
    return ", ".join(f"{outcome} × {count}" for outcome, count in Counter(seen).most_common())


def as_markdown(found: Mapping[str, Any], outages: Sequence[Outage]) -> str:
    """Return the table with its conditions."""
    lines = [
        f"# {found['benchmark']}, {found['date']}",
        "",
        *machine_lines(found),
        f"- One client asks over HTTP and one over gRPC, each every {PAUSE} s on a new connection and with a timeout of"
        f" {TIMEOUT:.0f} s; two answers are being streamed over HTTP and one over gRPC",
        f"- A row ends when both have had {IN_A_ROW} answers in a row, after {AT_LEAST:.0f} s at the earliest and"
        f" {AT_MOST:.0f} s at the latest; of vision, speech and cache, HTTP asks with media that are not cached",
        "",
        HEAD,
        *map(row, outages),
    ]
    return "\n".join(lines) + "\n"


def main(*wanted: str) -> None:
    """Measure, and write down what was found."""
    faults = [fault for fault in FAULTS if not wanted or any(word in fault.name for word in wanted)]
    found = conditions() | {"benchmark": "python -m tests.faults.outages"}
    outages = list[Outage]()
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        for outage in run(Path(folder), faults):
            outages.append(outage)
            print(row(outage), flush=True)
    measured = {"outages": [asdict(outage) for outage in outages]}
    as_json = json.dumps(found | measured, indent=2, ensure_ascii=False) + "\n"
    write(ROOT / "benchmarks" / "results", "outages", found, as_json, as_markdown(found, outages))


if __name__ == "__main__":
    main(*sys.argv[1:])
