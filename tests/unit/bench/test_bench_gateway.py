"""The gateway's benchmark with numbers so small that they mean nothing: its parts, its figures' form, its children."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import psutil
import pytest

from autoglm.bench.gateway import bench, report
from autoglm.bench.gateway.bench import GatewayBenchConfig, GatewayResults
from autoglm.bench.gateway.generator import Incomplete, OverHttp, open_streams
from autoglm.bench.gateway.stub import Work
from autoglm.bench.gateway.targets import GATEWAY, LITELLM, OVER_HTTP, STUBS, VLLM, Target, running_targets, version_of
from autoglm.cli.processes import StartError
from autoglm.training.measured import conditions

SMALL = GatewayBenchConfig(
    rounds=2, rate=200.0, requests=10, work=Work(3, 0.001), bursts={1: 20, 8: 150}, steps=2, held=4
)


@pytest.fixture(scope="module")
def results() -> GatewayResults:
    """What is measured without a peer; raises Incomplete unless every word of every stream came."""
    labels, before = list[str](), set(psutil.Process().children(recursive=True))
    measured = bench.run(SMALL, {}, lambda label, done, total: labels.append(f"{label} {done}/{total}"))
    assert any(label.startswith(f"{GATEWAY}: 8 streams") for label in labels)
    assert set(psutil.Process().children(recursive=True)) <= before
    return measured


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, Target]]:
    with running_targets({}) as targets:
        yield targets


def described(results: GatewayResults) -> tuple[str, str]:
    known = conditions() | {"benchmark": "autoglm bench gateway", "peers": [], "seed": 0} | SMALL.as_json()
    return report.as_json(known, results), report.as_markdown(known, results)


def test_each_side_has_a_figure_a_round(results: GatewayResults) -> None:
    written = json.loads(described(results)[0])
    assert {name for each in written["direct"] for name in each["targets"]} == {*STUBS, GATEWAY}
    assert all(len(each["targets"][GATEWAY]["rounds"]) == SMALL.rounds for each in written["direct"])
    assert all(row["peers"] == row["ratios"] == {} and row["ratio_met"] is None for row in written["rows"])
    by_measure = {row["measure"]: row for row in written["rows"]}
    assert by_measure["chunks/s, 8 streams"]["gateway"]["low"] > 0
    assert by_measure["ms added, unary answer, p50"]["met"] in (True, False)
    assert len(by_measure["KiB an open stream"]["gateway"]["rounds"]) == SMALL.steps


def test_added_is_beyond_the_stub_as_each_gateway_asks_it(results: GatewayResults) -> None:
    kind, words = "unary answer", SMALL.work
    through, direct = results.times[GATEWAY, kind, 50], results.times[STUBS[0], kind, 50]
    assert results.added(GATEWAY, kind, 50) == [through[0] - direct[0], through[1] - direct[1]]
    assert min(direct) >= 1000 * words.gap * (words.words - 1)


def test_a_peer_is_compared_round_by_round(results: GatewayResults) -> None:
    for measured in (results.times, results.rates, results.cpu_rates, results.memory):
        for key in [key for key in measured if GATEWAY in key]:
            for factor, peer in ((4, LITELLM), (2, VLLM)):
                other = peer if key == GATEWAY else (peer, *key[1:])
                measured[other] = [factor * value for value in measured[key]]  # type: ignore[index]
    lines = described(results)[1].splitlines()
    (line,) = [line for line in lines if line.startswith("| chunks/s, 8 streams |") and "0.25" in line]
    assert "| 0.25 (0.25–0.25) |  |  |" in line
    assert line.endswith("| 0.50 (0.50–0.50) |")
    head = "| Measure | Gateway | Goal | | LiteLLM | Gateway / LiteLLM | Goal | | vLLM | Gateway / vLLM |"
    assert {len(row.split("|")) for row in lines[lines.index(head) :][:10]} == {12}
    assert "| Measure | stub, gRPC | stub, HTTP | gateway | LiteLLM | vLLM |" in lines


@pytest.mark.parametrize("name", [OVER_HTTP, GATEWAY])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_word_is_counted(targets: dict[str, Target], name: str, stream: bool) -> None:
    client = targets[name].connect()
    answer = await client.ask(Work(300), stream, perf_counter())
    assert 0 < answer.first <= answer.end
    await client.close()


async def test_an_answer_that_is_refused_or_short_stops_it(targets: dict[str, Target]) -> None:
    client = targets[GATEWAY].connect()
    assert isinstance(client, OverHttp)
    client._key = "sk-wrong"
    with pytest.raises(Incomplete, match="status 401"):
        await client.ask(Work(2), True, perf_counter())
    with pytest.raises(Incomplete, match="status 401"):
        await open_streams(client, 2)
    await client.close()


async def test_streams_are_held_until_they_are_cancelled(targets: dict[str, Target]) -> None:
    client = targets[GATEWAY].connect()
    held = await open_streams(client, 3)
    assert not any(task.done() for task in held)
    for task in held:
        task.cancel()
    assert len(await asyncio.gather(*held, return_exceptions=True)) == 3
    await client.close()


@pytest.mark.parametrize(("peer", "made_by"), [(LITELLM, "tools/litellm.sh"), (VLLM, "tools/test_vllm.sh")])
def test_what_is_not_the_program_of_a_peer_is_said(tmp_path: Path, peer: str, made_by: str) -> None:
    with pytest.raises(StartError, match=made_by):
        version_of(peer, tmp_path / "program")
