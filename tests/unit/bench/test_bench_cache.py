"""The cache's benchmark with numbers so small that they mean nothing: its traces, and the form of its tables."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from autoglm.bench.cache import report, trace
from autoglm.bench.cache.bench import CacheResults
from autoglm.bench.cache.fetching import FetchComparison
from autoglm.bench.cache.trace import CacheSizes, TraceResult, ZipfConfig
from autoglm.cli.isolation import free_ports
from autoglm.training.measured import Figure, conditions

from ..gateway.redis_servers import running_server

SMALL = ZipfConfig(gateways=2, pictures=20, requests=300)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    (port,) = free_ports(1)
    with running_server(port, "--maxmemory-policy", "allkeys-lru"):
        yield f"redis://127.0.0.1:{port}/0"


def traced(url: str, local: float, redis: float) -> TraceResult:
    found = asyncio.run(trace.run(url, SMALL, 1.1, CacheSizes(local, redis)))
    assert found.local + found.shared + found.redis + found.encoded == pytest.approx(1)
    return found


def test_each_tier_has_its_share(url: str) -> None:
    both, alone, shared = traced(url, 1, 1), traced(url, 1, 0), traced(url, 0, 1)
    assert (alone.redis, shared.local) == (0, 0)
    assert both.encoded <= alone.encoded
    assert both.local > 0.5 < shared.redis
    assert shared.redis_mb > alone.redis_mb == pytest.approx(0, abs=0.1)


def test_the_same_seed_is_the_same_trace(url: str) -> None:
    one, two = traced(url, 1, 0), traced(url, 1, 0)
    assert (one.local, one.shared, one.encoded) == (two.local, two.shared, two.encoded)


def test_the_tables_have_every_figure(url: str) -> None:
    fast, slow = Figure.of([1.0, 2.0, 3.0]), Figure.of([100.0, 200.0, 300.0])
    rows = [
        FetchComparison("image", "screenshot", 31_000, slow, fast, Figure.of([100.0])),
        FetchComparison("audio", "tiny", 1000, fast, slow, Figure.of([0.01])),
    ]
    results = CacheResults(rows, [traced(url, 0.5, 0.5)])
    sizes = {"requests": 1, "pictures": 1, "gateways": 2}
    found = conditions() | {"benchmark": "autoglm bench cache", "rounds": 3} | sizes
    table = report.as_markdown(found, results)
    assert "| image | screenshot | 31 | 200 (100–300) | 2.00 (1.00–3.00) | 100 (100–100) | 1 |" in table
    assert table.count("| any |") == 1
    assert "| 1.1 | 50% | 50% |" in table
    assert len(json.loads(report.as_json(found, results))["traces"]) == 1
