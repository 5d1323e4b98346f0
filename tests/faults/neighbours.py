"""Measures what a quiet neighbour notices of each kind of hostile request: python -m tests.faults.neighbours [NAME…]

It starts a mesh, sends each attack (those with a NAME in their name) from a process of its own, and writes
benchmarks/results/neighbours-<date>.json and .md. A stream without the attack and one with it take turns.
With --own-core nothing else runs on the core of the decoder, as where each service has cores of its own; the files are
neighbours-own-core-<date>.
"""

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from autoglm.bench.smoke.report import machine_lines, write
from autoglm.training.measured import conditions, short

from ..mesh import Mesh, running_mesh
from ..waiting import eventually
from .attacker import ROOT, Attacker, running_attacker
from .attacks.catalog import ATTACKS
from .neighbour import Neighbour, Stay, neighbour, percentile

TURNS = 2
CORES = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Noticed:
    """What a neighbour noticed in all turns together, in milliseconds."""

    tokens: int
    p50: float
    p99: float
    longest: float
    question_p50: float
    question_longest: float

    @classmethod
    def of(cls, stay: Stay) -> Self:
        """Sum a stay up."""
        gaps, whole = ([seconds * 1000 for seconds in values] for values in (stay.gaps, stay.whole))
        questions = (percentile(whole, 0.5), max(whole, default=0.0))
        return cls(len(gaps), percentile(gaps, 0.5), percentile(gaps, 0.99), max(gaps, default=0.0), *questions)


@dataclass(frozen=True, slots=True)
class NoiseResult:
    """An attack, what its client learned, and what the neighbour noticed without it and with it."""

    name: str
    outcomes: Mapping[str, int]
    seconds: float  # the median of its requests
    alone: Noticed
    noisy: Noticed
    faults: Sequence[str]

    @property
    def ratio(self) -> float:
        """How many times as long the neighbour waits for one token in a hundred."""
        return self.noisy.p99 / self.alone.p99 if self.alone.p99 else 0.0


def measure(name: str, quiet: Neighbour, attacker: Attacker) -> NoiseResult:
    """Let the neighbour stream without the attack and with it, in turns."""
    attacker.prepare(name)
    alone, noisy, seen = Stay(), Stay(), list[tuple[str, float]]()
    for _ in range(TURNS):
        with quiet.asking(alone):
            quiet.stream(alone)
        with attacker.attacking(), quiet.asking(noisy):
            quiet.stream(noisy)
            while not attacker.seen and not noisy.faults:
                quiet.stream(noisy)
        seen += attacker.seen
    seconds = percentile([taken for _, taken in seen], 0.5)
    outcomes = dict(Counter(outcome for outcome, _ in seen).most_common())
    return NoiseResult(name, outcomes, seconds, Noticed.of(alone), Noticed.of(noisy), alone.faults + noisy.faults)


def give_own_core(mesh: Mesh) -> None:
    """Leave one core to the decoder, and the others to the rest of the mesh and to its clients."""
    decoder, (own, *others) = mesh.replica("decoder"), CORES
    for process in (decoder, psutil.Process(), *psutil.Process().children(recursive=True)):
        cores = {own} if process == decoder else others
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has ended meanwhile
            for thread in process.threads():
                os.sched_setaffinity(thread.id, cores)


def run(mesh: Mesh, names: Sequence[str], own_core: bool) -> list[NoiseResult]:
    """Measure these attacks one after the other; what has gone down with one is up again before the next."""
    results = []
    with neighbour(mesh.http_url) as quiet, running_attacker(mesh.http_url, mesh.grpc_address) as attacker:
        quiet.stream(Stay())
        for name in names:
            eventually(mesh.is_whole, "the mesh is whole")
            if own_core:
                give_own_core(mesh)
            results.append(measure(name, quiet, attacker))
            print(row(results[-1]), flush=True)
    return results


HEAD = """\
| Sent by another client | It learns | its request, s | Between tokens, ms: p50 | p99 | longest | p99, times as long \
| Short question, ms: p50 | longest |
|---|---|---|---|---|---|---|---|---|"""


def row(result: NoiseResult) -> str:
    """Return a result as a line of the table, each figure without the attack and with it."""
    alone, noisy = asdict(result.alone), asdict(result.noisy)
    figures = {key: f"{short(alone[key])} → {short(noisy[key])}" for key in alone}
    learned = ", ".join(f"{outcome} × {count}" for outcome, count in Counter(result.outcomes).most_common())
    noticed = f" **{len(result.faults)} failures**" if result.faults else ""
    cells = [result.name + noticed, learned, short(result.seconds), figures["p50"], figures["p99"], figures["longest"]]
    return "| " + " | ".join([*cells, short(result.ratio), figures["question_p50"], figures["question_longest"]]) + " |"


def as_markdown(found: Mapping[str, Any], results: Sequence[NoiseResult]) -> str:
    """Return the table with its conditions."""
    lines = [
        f"# {found['benchmark']}, {found['date']}",
        "",
        *machine_lines(found),
        f"- A quiet neighbour streams an answer and asks a short question every 0.2 s, {TURNS} times without the attack"
        " and with it in turns; figures are without → with it. The hostile client sends again as soon as it has its"
        " answer, from a process with low priority on the same machine",
        "- A failure is a token that is missing or not the right one, or a question that was not answered with 200",
        "",
        HEAD,
        *map(row, results),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Start a mesh, measure, and write down what was found."""
    arguments = argparse.ArgumentParser("python -m tests.faults.neighbours", description=__doc__)
    arguments.add_argument("--own-core", action="store_true", help="let nothing else run on the core of the decoder")
    arguments.add_argument("words", nargs="*", metavar="NAME", help="a word in the names of the attacks to send")
    chosen = arguments.parse_args()
    names = [name for name in ATTACKS if not chosen.words or any(word in name for word in chosen.words)]
    name = "neighbours-own-core" if chosen.own_core else "neighbours"
    command = f"{arguments.prog}{' --own-core' if chosen.own_core else ''}"
    found = conditions() | {"benchmark": command, "turns": TURNS}
    with tempfile.TemporaryDirectory() as folder, running_mesh(Path(folder) / "serve.log") as mesh:
        print(HEAD)
        results = run(mesh, names, chosen.own_core)
    measured = {"results": [asdict(result) | {"ratio": result.ratio} for result in results]}
    as_json = json.dumps(found | measured, indent=2, ensure_ascii=False) + "\n"
    write(ROOT / "benchmarks" / "results", name, found, as_json, as_markdown(found, results))


if __name__ == "__main__":
    main()
