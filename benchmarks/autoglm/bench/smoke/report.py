"""What a benchmark found: figures per row with their spread, where and with what, as JSON and as a table."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Self

from autoglm.bench.smoke.load import LoadRun, Sample
from autoglm.training.files import write_atomically
from autoglm.training.measured import Figure, short

STAGES = ("fetch", "encode", "queue", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class LoadCase:
    """What a row measures: which workload, whether its media was seen before, and how many users ask at once."""

    workload: str
    media: str
    concurrency: int


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The figures of a case: a round's value is the median of its answers; times in milliseconds."""

    case: LoadCase
    first_token: Figure
    inter_token: Figure
    total: Figure
    tokens_per_second: Figure
    prompt_tokens: float
    answer_tokens: float
    stages: Mapping[str, float]
    cache: Mapping[str, int]

    @classmethod
    def of(cls, case: LoadCase, runs: Sequence[LoadRun]) -> Self:
        """Sum up the rounds of a case."""
        samples = [sample for run in runs for sample in run.samples]
        return cls(
            case=case,
            first_token=_figure(runs, lambda sample: sample.first),
            inter_token=_figure(runs, lambda sample: sample.gap),
            total=_figure(runs, lambda sample: sample.total),
            tokens_per_second=Figure.of([run.tokens_per_second for run in runs]),
            prompt_tokens=median(sample.prompt_tokens for sample in samples),
            answer_tokens=median(sample.tokens for sample in samples),
            stages={name: round(median(sample.stages[name] for sample in samples), 2) for name in STAGES},
            cache=dict(sum((run.cache for run in runs), Counter[str]())),
        )


def _figure(runs: Sequence[LoadRun], value: Callable[[Sample], float]) -> Figure:
    return Figure.of([median(value(sample) for sample in run.samples) for run in runs])


@dataclass(frozen=True, slots=True)
class Ratio:
    """How much sooner the first token comes when the media was seen before: repeated over new, round by round."""

    workload: str
    concurrency: int
    first_token: Figure


def ratios(rows: Sequence[LoadResult]) -> list[Ratio]:
    """Compare each case of new media with the same case repeated; both ran in the same rounds, interleaved."""
    new = {(row.case.workload, row.case.concurrency): row for row in rows if row.case.media == "new"}
    return [
        Ratio(
            row.case.workload,
            row.case.concurrency,
            Figure.of([a / b for a, b in zip(row.first_token.rounds, before.first_token.rounds, strict=True)]),
        )
        for row in rows
        if row.case.media == "repeated" and (before := new[row.case.workload, row.case.concurrency])
    ]


def write(folder: Path, name: str, found: Mapping[str, Any], as_json: str, as_markdown: str) -> Path:
    """Write `name`-<date>.json and .md, each whole or not at all, and return the path of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{name}-{found['date']}"
    for suffix, text in ((".json", as_json), (".md", as_markdown)):
        write_atomically(stem.with_suffix(suffix), partial(Path.write_text, data=text, encoding="utf-8"))
    return stem.with_suffix(".md")


def machine_lines(found: Mapping[str, Any]) -> list[str]:
    """Say where and with what something was measured, as lines of a list."""
    machine, versions = found["machine"], ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    return [
        f"- Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; "
        f"commit {found['commit']}",
        f"- Versions: {versions}",
    ]


def as_json(found: Mapping[str, Any], rows: Sequence[LoadResult]) -> str:
    """Return everything as JSON."""
    figures = {"rows": [asdict(row) for row in rows], "ratios": [asdict(ratio) for ratio in ratios(rows)]}
    return json.dumps({**found, **figures}, indent=2, ensure_ascii=False) + "\n"


def as_markdown(found: Mapping[str, Any], rows: Sequence[LoadResult]) -> str:
    """Return the table with what it takes to read it."""
    lines = [
        f"# {found['benchmark']}, {found['date']}",
        "",
        *machine_lines(found),
        f"- Model {found['model']} at {found['server']}; seed {found['seed']}; the load generator runs there too",
        f"- {found['rounds']} rounds of {found['requests']} requests a row, rows in random order within a round; "
        "closed loop: each user asks again at once",
        "- A figure is the median of the rounds' medians (least–most of the rounds); times in milliseconds",
        "- `new`: every request has media of its own, so encoders work; `repeated`: always the same, "
        "so the embedding cache answers",
        "",
        "| Workload | Media | Users | TTFT | Between tokens | Whole answer | Tokens/s | In | Out |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
        "Where the server says the time goes (median, ms) and where embeddings came from:",
        "",
        f"| Workload | Media | Users | {' | '.join(STAGES)} | cache |",
        "|---|---|---|" + "---|" * (len(STAGES) + 1),
        *(_stages_line(row) for row in rows),
        "",
        "The first token when the media was seen before, over when it is new:",
        "",
        "| Workload | Users | Ratio |",
        "|---|---|---|",
        *(f"| {ratio.workload} | {ratio.concurrency} | {ratio.first_token} |" for ratio in ratios(rows)),
    ]
    return "\n".join(lines) + "\n"


def _line(row: LoadResult) -> str:
    figures = (row.first_token, row.inter_token, row.total, row.tokens_per_second)
    counts = f"{row.prompt_tokens:.0f} | {row.answer_tokens:.0f}"
    return f"| {_case(row.case)} | {' | '.join(map(str, figures))} | {counts} |"


def _stages_line(row: LoadResult) -> str:
    times = " | ".join(short(row.stages[name]) for name in STAGES)
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(row.cache.items())) or "–"
    return f"| {_case(row.case)} | {times} | {outcomes} |"


def _case(case: LoadCase) -> str:
    return f"{case.workload} | {case.media} | {case.concurrency}"
