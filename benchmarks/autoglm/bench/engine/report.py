"""What `autoglm bench engine` found, as JSON and as tables."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from autoglm.bench.engine.bench import EngineResults
from autoglm.bench.engine.checks import CachePressure, Equal
from autoglm.bench.engine.speed import EngineComparison
from autoglm.bench.smoke.report import machine_lines


def as_json(found: Mapping[str, Any], measured: EngineResults) -> str:
    """Return everything as JSON."""
    figures = {
        "rows": [asdict(row) | {"met": row.met} for row in measured.rows],
        "equal": [asdict(each) for each in measured.equal],
        "cache_pressure": [asdict(each) for each in measured.cache_pressure],
    }
    return json.dumps({**found, **figures}, indent=2, ensure_ascii=False) + "\n"


def as_markdown(found: Mapping[str, Any], measured: EngineResults) -> str:
    """Return the tables with what it takes to read them."""
    lines = [
        f"# {found['benchmark']}, {found['date']}",
        "",
        *machine_lines(found),
        f"- {found['dtype']}, {found['gpu'] or str(found['threads']) + ' thread(s)'} on both sides; prompts of "
        f"{found['prompt_tokens']} random tokens, answers of {found['answer_tokens']}",
        f"- {found['rounds']} rounds after one that warms up, both sides in each, in random order; a figure is the "
        "median of the rounds (least–most)",
        "- × is engine over peer, round by round; the peer is named after the colon",
        "",
        "| Model | Measure: peer | Engine | Peer | × | Goal | |",
        "|---|---|---|---|---|---|---|",
        *map(_row, measured.rows),
        "",
        "Greedy answers in float32 that are, token for token, those of transformers' generate on the same inputs:",
        "",
        "| Model | Computed | Asked | Equal |",
        "|---|---|---|---|",
        *map(_equal, measured.equal),
        "",
        "Four times as many requests at once as fit in the cache; equal means: as with room for all:",
        "",
        "| Model | Asked | Answered | Equal | Put back | Cache, MiB | Process grew, MiB |",
        "|---|---|---|---|---|---|---|",
        *map(_pressure, measured.cache_pressure),
    ]
    return "\n".join(lines) + "\n"


def _row(row: EngineComparison) -> str:
    goal, met = f"{'≤' if row.at_most else '≥'} {row.goal:g}", "reached" if row.met else "**missed**"
    return f"| {row.model} | {row.measure} | {row.ours} | {row.peer} | {row.ratio} | {goal} | {met} |"


def _equal(each: Equal) -> str:
    return f"| {each.model} | {each.check} | {each.asked} | {each.equal} |"


def _pressure(each: CachePressure) -> str:
    figures = (each.asked, each.finished, each.equal, each.preemptions, each.cache_mib, each.grown_mib)
    return f"| {each.model} | {' | '.join(map(str, figures))} |"
