"""The benchmark's figures and files, from made-up answers."""

import json
from pathlib import Path

import pytest

from autoglm.bench.smoke import report
from autoglm.bench.smoke.load import LoadRun, Sample
from autoglm.bench.smoke.report import LoadCase, LoadResult
from autoglm.training.measured import Figure, conditions

STAGES = {"fetch": 1.0, "encode": 20.0, "queue": 0.5, "prefill": 8.0, "decode": 90.0}


def run(first: float, cache: tuple[str, ...] = ()) -> LoadRun:
    samples = [Sample(first + i, 2.0, first + 100, 120, 40, STAGES, cache) for i in (-1, 0, 50)]
    return LoadRun(samples, seconds=2.0)


@pytest.fixture
def rows() -> list[LoadResult]:
    new = LoadResult.of(LoadCase("screen", "new", 16), [run(40, ("miss",)), run(60, ("miss",)), run(50, ("miss",))])
    repeated = LoadResult.of(
        LoadCase("screen", "repeated", 16), [run(20, ("local",)), run(15, ("local",)), run(25, ("local",))]
    )
    return [new, repeated]


def test_a_figure_is_the_median_of_rounds_with_its_spread() -> None:
    figure = Figure.of([40.0, 60.0, 50.0])
    assert (figure.median, figure.low, figure.high) == (50.0, 40.0, 60.0)
    assert str(figure) == "50.0 (40.0–60.0)"


def test_a_row_takes_the_median_of_each_round(rows: list[LoadResult]) -> None:
    assert rows[0].first_token.rounds == [40.0, 60.0, 50.0]
    assert rows[0].tokens_per_second.median == 60.0
    assert rows[0].cache == {"miss": 9}
    assert rows[0].stages == STAGES


def test_ratios_pair_the_rounds(rows: list[LoadResult]) -> None:
    (ratio,) = report.ratios(rows)
    assert ratio.first_token.rounds == [0.5, 0.25, 0.5]
    assert (ratio.workload, ratio.concurrency) == ("screen", 16)


def test_both_files_are_written_whole(rows: list[LoadResult], tmp_path: Path) -> None:
    found = conditions() | {
        "benchmark": "autoglm bench smoke",
        "model": "m",
        "server": "s",
        "seed": 0,
        "rounds": 3,
        "requests": 3,
    }
    table = report.write(
        tmp_path / "results", "smoke", found, report.as_json(found, rows), report.as_markdown(found, rows)
    )
    assert sorted(path.suffix for path in table.parent.iterdir()) == [".json", ".md"]
    written = json.loads(table.with_suffix(".json").read_text())
    assert written["rows"][0]["case"] == {"workload": "screen", "media": "new", "concurrency": 16}
    assert written["machine"]["cpu"]
    assert "| screen | new | 16 | 50.0 (40.0–60.0) |" in table.read_text()
