"""Plans: how many replicas, where, at what cost, and what is said where there is none."""

import json
import random
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from multiprocessing import active_children
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from autoglm.bench.plan.cache_size import lru_entries
from autoglm.bench.plan.cards import CARDS, Card, card_costs, decoder_passes
from autoglm.bench.plan.costs import StageCosts
from autoglm.bench.plan.placement import Placement, PlacementShard, Service, place
from autoglm.bench.plan.plan import Plan, make_plan
from autoglm.bench.plan.replications import Replications, replications
from autoglm.bench.plan.report import as_text
from autoglm.bench.plan.schema import PlanError
from autoglm.bench.plan.simulation import SimulatedLatency, Simulation, SimulationConfig
from autoglm.bench.plan.sizing import ExpectedLatency, Sizer, gateways, with_spares
from autoglm.bench.plan.workload import Workload
from autoglm.cli.main import app

from ....waiting import eventually
from .parts import GB, costs, encoder, workload

ORDER: tuple[Service, ...] = ("vision", "speech", "decoder", "monolith")


def alone(**counts: int) -> Placement:
    """So many replicas, each on a device of its own."""
    return Placement(tuple((service,) for service in ORDER for _ in range(counts.get(service, 0))))


SEPARATE = alone(vision=1, decoder=1)


@pytest.fixture
def simulator() -> Iterator[Replications]:
    with ThreadPoolExecutor(1) as pool:
        yield Replications(pool)


def planned(asked: Workload, stages: StageCosts, simulator: Replications, price: float | None = None) -> Plan:
    return make_plan(Sizer(asked, stages, simulator, 800, 0, lambda *_: None), price)


def simulate(asked: Workload, stages: StageCosts, placement: Placement, count: int, seed: int = 0) -> SimulatedLatency:
    return Simulation(asked, stages, PlacementShard(placement, 1.0, 1.0), SimulationConfig(count, seed)).run()


def latency(asked: Workload, placement: Placement, seed: int = 0) -> ExpectedLatency:
    return ExpectedLatency.of(simulate(asked, costs(), placement, 1500, seed))


# --- simulation ------------------------------------------------------------------------------------------


def test_a_request_that_meets_no_other_takes_what_its_stages_take() -> None:
    quiet = workload(request_rate=0.01)
    simulated = simulate(quiet, costs(), SEPARATE, 50)
    text, screen = 0.001 + 0.005 + 100 * 0.0001, 0.001 + 0.001 + 0.002 + 0.002 + 0.005 + 0.005 + 69 * 0.0001
    assert sorted({round(ttft, 6) for ttft in simulated.ttft}) == pytest.approx(sorted([text, screen]))
    assert {round(gap, 6) for gap in simulated.itl} == {0.010}
    assert len(simulated.itl) == 50 * 15


def test_one_seed_gives_one_result_and_another_gives_another() -> None:
    first, again, other = (latency(workload(), SEPARATE, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_more_replicas_are_never_worse() -> None:
    busy = workload(request_rate=60)
    decoders = [latency(busy, alone(vision=1, decoder=count)) for count in (2, 3, 5, 8)]
    encoders = [latency(busy, alone(vision=count, decoder=8)) for count in (1, 2, 4)]
    for found in (decoders, encoders):
        assert [each.ttft_p99_ms for each in found] == sorted((each.ttft_p99_ms for each in found), reverse=True)
    assert [each.itl_p99_ms for each in decoders] == sorted((each.itl_p99_ms for each in decoders), reverse=True)


def test_a_faster_rate_is_never_better() -> None:
    found = [latency(workload(request_rate=rate), SEPARATE).ttft_p99_ms for rate in (2, 10, 20, 30)]
    assert found == sorted(found)


def test_shards_give_what_the_whole_gives(simulator: Replications) -> None:
    placement = alone(vision=2, decoder=24)
    busy, config = workload(request_rate=300), SimulationConfig(2000, 0)
    shards = ExpectedLatency.of(simulator.simulate(busy, costs(), placement, config))
    whole = ExpectedLatency.of(simulate(busy, costs(), placement, 2000))
    assert shards.ttft_p50_ms == pytest.approx(whole.ttft_p50_ms, rel=0.1)
    assert shards.ttft_p99_ms == pytest.approx(whole.ttft_p99_ms, rel=0.2)
    assert shards.itl_p99_ms == pytest.approx(whole.itl_p99_ms, rel=0.1)


def test_shards_do_not_depend_on_the_number_of_processes() -> None:
    placement, config = alone(vision=1, decoder=3), SimulationConfig(400, 5)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(4) as four:
        first, second = (Replications(pool).simulate(workload(), costs(), placement, config) for pool in (one, four))
    assert first == second


def test_processes_end_when_a_simulation_is_interrupted() -> None:
    def stop(done: int, _total: int) -> None:
        raise KeyboardInterrupt

    others = active_children()
    with pytest.raises(KeyboardInterrupt), replications() as simulator:
        simulator.simulate(workload(), costs(), SEPARATE, SimulationConfig(100_000, 0), stop)
    eventually(lambda: set(active_children()) <= set(others), "the processes of the simulation have ended")


def test_in_one_process_running_answers_wait_for_media() -> None:
    heavy = costs(vision=encoder(forward={"base_s": 0.1, "token_s": 0.01}))
    apart = simulate(workload(), heavy, alone(vision=1, decoder=2), 800)
    together = simulate(workload(), heavy, alone(monolith=3), 800)
    assert max(apart.itl) < 0.1 < max(together.itl)


# --- plans -----------------------------------------------------------------------------------------------


def test_a_plan_meets_its_slo_and_says_what_it_costs(simulator: Replications) -> None:
    made = planned(workload(request_rate=50, cache={"hit_ratio": 0.5}), costs(), simulator, price=0.5)
    mesh, one_process = made.options
    for option in (mesh, one_process):
        assert option.sized is not None
        assert option.cost is not None
        assert option.sized.expected.ttft_p99_ms <= 400
        assert option.sized.expected.itl_p99_ms <= 80
        assert option.cost.per_hour == pytest.approx(0.5 * option.cost.devices)
        assert option.cost.per_1000_requests == pytest.approx(0.5 * option.cost.devices / 180, rel=1e-3)
    assert mesh.sized is not None
    assert made.serve_config()["decoder"]["deployments"] == [
        {"name": "Decoder", "num_replicas": mesh.sized.replicas["decoder"]}
    ]
    (cache,) = made.cache
    assert (cache.kind, cache.bytes) == ("image", cache.entries * (31_360 + 1024))
    text = as_text(made)
    assert yaml.safe_load(text.split("```yaml")[1].split("```")[0])["applications"]
    assert json.loads(json.dumps(made.as_dict()))["options"][0]["kind"] == "mesh"


def test_more_requests_need_more_replicas(simulator: Replications) -> None:
    plans = [planned(workload(request_rate=rate), costs(), simulator).mesh.sized for rate in (10, 60, 150)]
    decoders = [sized.needed["decoder"] for sized in plans if sized is not None]
    assert decoders == sorted(decoders)
    assert decoders[0] < decoders[-1]


@pytest.mark.parametrize(
    ("slo", "stages", "said"),
    [
        ({"ttft_p99_ms": 4, "itl_p99_ms": 80}, costs(), "without any other load it is 23 ms, and decoder alone takes"),
        (
            {"ttft_p99_ms": 100, "itl_p99_ms": 80},
            costs(vision=encoder(preprocess_s=0.5)),
            "slo.ttft_p99_ms: 100 ms cannot be met on test: without any other load it is 521 ms, and vision alone",
        ),
        ({"ttft_p99_ms": 400, "itl_p99_ms": 5}, costs(), "slo.itl_p99_ms: 5 ms cannot be met on test: decoder takes"),
        ({"ttft_p99_ms": 400, "itl_p99_ms": 80}, costs(memory_bytes=9 * GB), "decoder does not fit: weights and one"),
    ],
)
def test_an_slo_that_cannot_be_met_names_the_stage(
    slo: dict[str, float], stages: StageCosts, said: str, simulator: Replications
) -> None:
    with pytest.raises(PlanError) as refused:
        planned(workload(slo=slo), stages, simulator)
    assert said in str(refused.value)


def test_decoders_share_no_gpu_and_encoders_fill_what_is_left() -> None:
    demand: dict[Service, float] = {"decoder": 0.5, "vision": 0.3, "speech": 0.3}
    placed = place(costs(), {"decoder": 2, "vision": 1, "speech": 2}, demand)
    assert placed.devices == (("decoder", "vision"), ("decoder", "speech"), ("speech",))
    assert not placed.dedicated


def test_a_shard_takes_equal_parts_of_whole_devices() -> None:
    part = alone(vision=12, speech=4, decoder=400).shard(8)
    assert (part.of_decoders, part.of_encoders) == (0.02, 0.25)
    assert part.placement == alone(vision=3, speech=1, decoder=8)
    uneven = alone(vision=3, speech=2, decoder=400).shard(8)
    assert (uneven.of_encoders, uneven.placement) == (1.0, alone(vision=3, speech=2, decoder=8))
    few = alone(vision=12, decoder=8)
    assert few.shard(8) == PlacementShard(few, 1.0, 1.0)


def test_spares_give_the_wanted_availability() -> None:
    assert with_spares({"decoder": 1}, 0.99, 0.995) == {"decoder": 1}
    assert with_spares({"decoder": 1}, 0.999, 0.995) == {"decoder": 2}  # 1 - 0.005²
    assert with_spares({"decoder": 10}, 0.99, 0.99) == {"decoder": 11}  # 0.99^10 < 0.99 < 11 * 0.99^10 * 0.01 + 0.99^11
    assert with_spares({"decoder": 1, "vision": 1}, 0.99, 0.99) == {"decoder": 2, "vision": 2}


def test_gateways_are_counted_by_what_they_compute() -> None:
    assert gateways(workload(), costs()) == 1
    assert gateways(workload(request_rate=1000), costs()) == 4  # 1000 * (1 + 16 * 0.1) ms = 2.6 cores, 0.85 of each


# --- caches and cards ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("exponent", "ratio"), [(1.0, 0.5), (0.8, 0.3), (1.2, 0.7), (0.0, 0.4)])
def test_an_lru_cache_of_the_planned_size_has_the_wanted_hit_ratio(exponent: float, ratio: float) -> None:
    distinct, draws = 2000, random.Random(0)
    size = lru_entries(distinct, exponent, ratio)
    weights = list(accumulate(rank**-exponent for rank in range(1, distinct + 1)))
    cache, hits, asked = OrderedDict[int, None](), 0, 60_000
    for number, item in enumerate(draws.choices(range(distinct), cum_weights=weights, k=asked + 20_000)):
        if item in cache:
            cache.move_to_end(item)
            hits += number >= 20_000
        else:
            cache[item] = None
            if len(cache) > size:
                cache.popitem(last=False)
    assert hits / asked == pytest.approx(ratio, abs=0.015)


def test_the_roofline_gives_what_was_measured_on_an_h200() -> None:
    h200 = Card("H200", 141e9, 4800e9, 989e12, 67e12, "")
    prefill, decode = decoder_passes(h200)
    assert decode.seconds(1, 160) == pytest.approx(0.0070, rel=0.06)  # docs/adr/0010
    assert prefill.seconds(1024, 1024 * 512) == pytest.approx(0.036, rel=0.06)


def test_a_card_gets_the_context_that_the_workload_needs() -> None:
    asked = workload()
    stages = card_costs(CARDS["4090"], costs(on_cpu=True), 16, asked)
    assert stages.decoder.max_model_len == 128  # 100 + 16 tokens in blocks of 64
    assert stages.decoder.kv_bytes_per_token == 40_960
    assert stages.vision.preprocess_threads == 8
    assert all(card.source.startswith("https://") for card in CARDS.values())
    long = workload(classes=[{"name": "long", "share": 1, "prompt_tokens": 140_000, "output_tokens": 16}])
    with pytest.raises(PlanError, match="a request has up to 140016 tokens, and the model takes 131072"):
        card_costs(CARDS["4090"], costs(on_cpu=True), 16, long)


# --- files and the command -------------------------------------------------------------------------------

SOUND = """\
request_rate: 4
classes:
  - {name: text, share: 1, prompt_tokens: 100, output_tokens: 8}
slo: {ttft_p99_ms: 500, itl_p99_ms: 100}
"""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("request_rate: 4", "request_rate: 0"), "request_rate: input should be greater than 0 (it is 0)"),
        (("request_rate: 4", "request_rate: fast"), "request_rate: input should be a valid number"),
        (("request_rate: 4\n", ""), "request_rate: this field is required"),
        (("output_tokens: 8", "output_tokens: 8.5"), "classes[0].output_tokens: input should be a valid integer"),
        (("itl_p99_ms", "itl_p98_ms"), "slo.itl_p99_ms: this field is required"),
        (
            ("itl_p99_ms: 100", "itl_p99_ms: 100, availabilty: 0.9"),
            "slo.availabilty: no such field; did you mean availability? Fields: ttft_p99_ms, itl_p99_ms, availability",
        ),
        (
            ("output_tokens: 8", "output_tokens: 8, image: 1"),
            "classes[0].image: no such field; did you mean images? Fields: name, share, prompt_tokens",
        ),
        (("output_tokens: 8", "output_tokens: 8, images: 65"), "classes[0].images: input should be less than or equal"),
        (("output_tokens: 8", "output_tokens: 8, prefix_tokens: 101"), "classes[0]: prefix_tokens must not be more"),
        (("slo: ", "cache: {hit_ratio: 1}\nslo: "), "cache.hit_ratio: input should be less than 1 (it is 1)"),
        (("slo: {", "slo: [{"), "is not YAML: while parsing a flow"),
    ],
)
def test_a_wrong_workload_is_named_with_its_path(changed: tuple[str, str], said: str, tmp_path: Path) -> None:
    file = tmp_path / "workload.yaml"
    file.write_text(SOUND.replace(*changed))
    with pytest.raises(PlanError) as refused:
        Workload.load(file)
    assert str(refused.value).startswith(str(file))
    assert said in str(refused.value)


def test_costs_are_those_of_a_result_file(tmp_path: Path) -> None:
    file = tmp_path / "stages.json"
    file.write_text(json.dumps({"date": "2026-11-29", "costs": costs(on_cpu=True).model_dump()}))
    assert StageCosts.load(file) == costs(on_cpu=True)
    file.write_text("{}")
    with pytest.raises(PlanError, match="has no field costs: name a file that `autoglm bench stages` has written"):
        StageCosts.load(file)
    with pytest.raises(PlanError, match="cannot be read"):
        StageCosts.load(tmp_path / "none.json")


def test_the_command_prints_a_plan_or_the_reason_for_none(tmp_path: Path) -> None:
    asked, stages = tmp_path / "workload.yaml", tmp_path / "stages.json"
    asked.write_text(SOUND)
    stages.write_text(json.dumps({"costs": costs(on_cpu=True).model_dump()}))
    arguments = ["plan", str(asked), "--costs", str(stages), "--price", "1", "--requests", "400"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "| mesh | 1 decoder | 1 |" in shown.stdout
    as_json = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert json.loads(as_json.stdout)["serve_config"]["decoder"]["deployments"][0]["num_replicas"] == 1
    asked.write_text(SOUND.replace("ttft_p99_ms: 500", "ttft_p99_ms: 1"))
    refused = CliRunner().invoke(app, arguments)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "autoglm plan: slo.ttft_p99_ms: 1 ms cannot be met" in refused.stderr
