"""A plan for people to read."""

import yaml

from autoglm.bench.plan.placement import Service
from autoglm.bench.plan.plan import REPLICAS, Option, Plan
from autoglm.bench.plan.sizing import Sized


def as_text(plan: Plan) -> str:
    """Return the plan as tables in Markdown, with what to set in deploy/serve.yaml."""
    blocks = [_head(plan), _options(plan), _placement(plan), _cache(plan), _serve(plan), _notes(plan)]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines) + "\n"


def _head(plan: Plan) -> list[str]:
    slo = plan.workload.slo
    return [
        f"{plan.workload.request_rate:g} requests/s on {plan.costs.device}; wanted: TTFT p99 {slo.ttft_p99_ms:g} ms, "
        f"between tokens p99 {slo.itl_p99_ms:g} ms, availability {slo.availability:g}"
    ]


def _options(plan: Plan) -> list[str]:
    columns = "Devices | TTFT p50, ms | p99 | Between tokens p50, ms | p99 | Cost/h | per 1000 requests"
    return [
        f"| | Replicas | {columns} |",
        "|---|---|" + "---|" * 7,
        *map(_row, plan.options),
        *(f"{option.kind}: {option.refused}" for option in plan.options if option.refused),
    ]


def _row(option: Option) -> str:
    if option.sized is None or option.cost is None:
        return f"| {option.kind} | none meets the SLO |" + " – |" * 7
    sized, cost, seen = option.sized, option.cost, option.sized.expected
    replicas = ", ".join(_replicas(sized, name) for name in REPLICAS if name in sized.replicas)
    figures = (seen.ttft_p50_ms, seen.ttft_p99_ms, seen.itl_p50_ms, seen.itl_p99_ms)
    shown = [f"{figure:.0f}" if figure >= 100 else f"{figure:.1f}" for figure in figures]
    money = [_money(cost.per_hour), _money(cost.per_1000_requests)]
    return f"| {' | '.join([option.kind, replicas, str(cost.devices), *shown, *money])} |"


def _replicas(sized: Sized, name: Service) -> str:
    """Return the number of replicas, and how many of them are needed, where the others are for availability."""
    count, needed = sized.replicas[name], sized.needed[name]
    return f"{count} {name}" + (f" ({needed} needed)" if needed < count else "")


def _money(amount: float | None) -> str:
    return "–" if amount is None else f"{amount:.2f}" if amount >= 1 else f"{amount:.4f}"


def _placement(plan: Plan) -> list[str]:
    lines = ["| | Devices | Each runs | Weights and runtime | Keys and values | Memory |", "|---|---|---|---|---|---|"]
    for option in plan.options:
        for load in plan.memory(option.sized) if option.sized else []:
            services = load["services"]
            runs = ", ".join(f"{services.count(name)} {name}" for name in dict.fromkeys(services))
            sizes = (load["weights_and_runtime_bytes"], load["kv_cache_bytes"], load["memory_bytes"])
            lines.append(f"| {option.kind} | {load['devices']} | {runs} | {' | '.join(map(_size, sizes))} |")
    where = "on the same cores" if plan.costs.on_cpu else "on CPUs"
    return [*lines, "", f"Gateways: {plan.gateways} {where}, {_size(plan.costs.gateway.memory_bytes)} each"]


def _cache(plan: Plan) -> list[str]:
    ratio = plan.workload.cache.hit_ratio
    return [
        f"Embedding cache for a hit ratio of {ratio:g}: {each.entries} entries of {each.kind}, {_size(each.bytes)}"
        for each in plan.cache
    ]


def _serve(plan: Plan) -> list[str]:
    if not (config := plan.serve_config()):
        return []
    applications = [{"name": name, **settings} for name, settings in config.items()]
    text = yaml.safe_dump({"applications": applications}, sort_keys=False).strip()
    return ["To set in deploy/serve.yaml:", "", "```yaml", text, "```"]


def _notes(plan: Plan) -> list[str]:
    return [
        f"Latencies are simulated: {plan.requests} requests, seed {plan.seed}, with the replicas that are needed; "
        "what a simulation differs from a mesh by: docs/planning.md"
    ]


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count else "–"
