"""The benchmark of scaling with numbers so small that they mean nothing: its loop, and the form of its tables."""

import asyncio
import json

import pytest
import torch

from autoglm.bench.scaling import report
from autoglm.bench.scaling.bench import LEAST_REQUESTS, Level, ScalingConfig, ServiceScaling, measure
from autoglm.bench.scaling.replicas import Took, load
from autoglm.common.modalities import ApplicationName
from autoglm.training.measured import Figure, conditions


class Replica:
    """Notes how many requests it has at a time."""

    def __init__(self) -> None:
        self.ongoing, self.most, self.asked = 0, list[int](), 0

    async def __call__(self) -> Took:
        self.ongoing += 1
        self.asked += 1
        self.most.append(self.ongoing)
        await asyncio.sleep(0)
        self.ongoing -= 1
        return Took(0.5, 1.0)


async def test_so_many_requests_are_in_progress() -> None:
    replica, told = Replica(), list[tuple[int, int]]()
    config = ScalingConfig((1, 3), 2, 1)
    found = await measure("vision", replica, config, lambda _, done, total: told.append((done, total)))
    assert [level.ongoing for level in found.levels] == [1, 3]
    assert max(replica.most) == 3
    assert replica.asked == 3 * 2 * LEAST_REQUESTS
    assert told == [(done, 6) for done in range(7)]
    first, last = found.levels[0].first_p95, found.levels[0].last_p50
    assert (first.median, last.median, last.rounds) == (500, 1000, [1000, 1000])


def level(ongoing: int, cpu: float) -> Level:
    figures = (Figure.of([value]) for value in (10 * ongoing, 12 * ongoing, 20 * ongoing, 24 * ongoing, 91, cpu))
    return Level(ongoing, *figures)


def test_the_tables_have_every_figure() -> None:
    levels = [level(1, 100), level(2, 57), level(4, 55), level(8, 50)]
    services = [ServiceScaling("speech", levels), ServiceScaling("decoder", levels[:1])]
    found = conditions() | {"benchmark": "autoglm bench scaling", "rounds": 1, "threads": 1}
    table = report.as_markdown(found, services)
    assert "| 4 | 80.0 (80.0–80.0) | 96.0 (96.0–96.0) | 91.0 (91.0–91.0) | 55.0 (55.0–55.0) |" in table
    assert "| 1 | 10.0 (10.0–10.0) | 12.0 (12.0–12.0) | 20.0 (20.0–20.0) | 24.0 (24.0–24.0) | 91.0" in table
    assert "With 4 in progress each takes nearly the least CPU; more of them only wait." in table
    assert [each["enough"] for each in json.loads(report.as_json(found, services))["services"]] == [4, 1]


@pytest.mark.parametrize("name", ["speech", "decoder"])
async def test_a_replica_answers(name: ApplicationName) -> None:
    took = await load(name, torch.get_num_threads())()  # as many threads as other tests have
    assert 0 < took.first <= took.last
