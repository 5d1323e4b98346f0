"""The benchmark of tracing with numbers so small that they mean nothing: whose spans are sent, its figures' form."""

import json

from autoglm.bench.tracing import bench, report
from autoglm.bench.tracing.bench import OFF, SAMPLED, UNSAMPLED, TracingBenchConfig
from autoglm.training.measured import conditions


def test_each_gateway_has_a_figure_a_round_and_one_sends_spans() -> None:
    config = TracingBenchConfig(rounds=2, requests=20)
    costs = bench.run(config, lambda _label, _done, _total: None)
    assert {name: len(values) for name, values in costs.milliseconds.items()} == {OFF: 2, UNSAMPLED: 2, SAMPLED: 2}
    assert costs.exports[UNSAMPLED] == 0
    assert costs.exports[SAMPLED] > 0
    found = conditions() | {"benchmark": "autoglm bench tracing"} | config.as_json()
    assert json.loads(report.as_json(found, costs))["milliseconds"][OFF] == costs.milliseconds[OFF]


def test_ratios_are_taken_round_by_round() -> None:
    costs = bench.TracingCosts({OFF: [1.0, 4.0, 2.0], UNSAMPLED: [1.0, 6.0, 3.0], SAMPLED: [2.0, 4.0, 4.0]})
    assert costs.ratios(SAMPLED) == [2.0, 1.0, 2.0]
    found = conditions() | {"benchmark": "autoglm bench tracing"} | TracingBenchConfig.of(quick=True).as_json()
    rows = report.as_markdown(found, costs).splitlines()[-3:]
    assert rows == [
        "| off | 2.00 (1.00–4.00) |  |",
        "| on, none sampled | 3.00 (1.00–6.00) | 1.50 (1.00–1.50) |",
        "| on, all sampled | 4.00 (2.00–4.00) | 2.00 (1.00–2.00) |",
    ]
