"""The results of `autoglm bench gateway`, as JSON and as tables."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from autoglm.bench.gateway.bench import PERCENTILES, TIMES, GatewayResults
from autoglm.bench.gateway.targets import GATEWAY, LITELLM, SERVERS, STUBS
from autoglm.bench.smoke.report import machine_lines
from autoglm.training.measured import Figure

ADDED = {50: 2.0, 99: 6.0}  # the most milliseconds that our gateway should add
CHUNKS = 8000.0  # the least that one process of it should pass on in a second
SHARE = 0.3  # of what LiteLLM adds: the most that ours should


@dataclass(frozen=True, slots=True)
class GatewayComparison:
    """One figure of our gateway and of each peer, its ratio to theirs round by round, and what ours and the ratio to
    LiteLLM's should be."""

    measure: str
    gateway: Figure
    peers: Mapping[str, Figure]
    ratios: Mapping[str, Figure]
    goal: float | None = None
    at_most: bool = True
    ratio_goal: float | None = None

    @classmethod
    def of(cls, measure: str, values: Mapping[str, list[float]], **goals: Any) -> Self:
        """Return the row of the values of each target, a value a round."""
        ours = values[GATEWAY]
        theirs = {name: of_peer for name, of_peer in values.items() if name != GATEWAY}
        ratios = {
            name: Figure.of([a / b for a, b in zip(ours, of_peer, strict=True)]) for name, of_peer in theirs.items()
        }
        return cls(measure, Figure.of(ours), {name: Figure.of(of) for name, of in theirs.items()}, ratios, **goals)

    @property
    def met(self) -> bool | None:
        """Whether the gateway's median reaches its goal, if it has one."""
        if self.goal is None:
            return None
        return self.gateway.median <= self.goal if self.at_most else self.gateway.median >= self.goal

    @property
    def ratio_met(self) -> bool | None:
        """Whether the median of the ratio to LiteLLM's reaches its goal, if there are both."""
        if self.ratio_goal is None or LITELLM not in self.ratios:
            return None
        return self.ratios[LITELLM].median <= self.ratio_goal


@dataclass(frozen=True, slots=True)
class Direct:
    """What a row was made from, by target, with the stub's own limits."""

    measure: str
    targets: Mapping[str, Figure]


def rows(results: GatewayResults) -> Iterator[GatewayComparison]:
    """Yield every comparison."""
    servers = [name for name in SERVERS if name in results.memory]
    for kind in TIMES:
        for percentile in PERCENTILES:
            values = {name: results.added(name, kind, percentile) for name in servers}
            yield GatewayComparison.of(
                f"ms added, {kind}, p{percentile}", values, goal=ADDED[percentile], ratio_goal=SHARE
            )
    for streams in dict.fromkeys(streams for _, streams in results.rates):
        values = {name: results.rates[name, streams] for name in servers}
        yield GatewayComparison.of(f"chunks/s, {_streams(streams)}", values, goal=CHUNKS, at_most=False)
    for streams in dict.fromkeys(streams for _, streams in results.rates):
        values = {name: results.cpu_rates[name, streams] for name in servers}
        yield GatewayComparison.of(f"chunks per second of its CPU time, {_streams(streams)}", values)
    yield GatewayComparison.of("KiB an open stream", {name: results.memory[name] for name in servers})


def directs(results: GatewayResults) -> Iterator[Direct]:
    """Yield every time and rate as it was measured."""
    targets = [name for name in (*STUBS, *SERVERS) if any(name == target for target, _ in results.rates)]
    for kind in TIMES:
        for percentile in PERCENTILES:
            figures = {name: Figure.of(results.times[name, kind, percentile]) for name in targets}
            yield Direct(f"ms, {kind}, p{percentile}", figures)
    for streams in dict.fromkeys(streams for _, streams in results.rates):
        yield Direct(
            f"chunks/s, {_streams(streams)}", {name: Figure.of(results.rates[name, streams]) for name in targets}
        )


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"


def as_json(conditions: Mapping[str, Any], results: GatewayResults) -> str:
    """Return everything as JSON."""
    figures = {
        "rows": [asdict(row) | {"met": row.met, "ratio_met": row.ratio_met} for row in rows(results)],
        "direct": [asdict(direct) for direct in directs(results)],
    }
    return json.dumps({**conditions, **figures}, indent=2, ensure_ascii=False) + "\n"


def as_markdown(conditions: Mapping[str, Any], results: GatewayResults) -> str:
    """Return the tables with what it takes to read them."""
    work, measured, compared = conditions["work"], list(directs(results)), list(rows(results))
    targets = list(measured[0].targets)
    lines = [
        f"# {conditions['benchmark']}, {conditions['date']}",
        "",
        *machine_lines(conditions),
        *(f"- Peer: {peer}" for peer in conditions["peers"]),
        "- Stub, gateways and load generator are processes of their own, one worker each, all on this machine: on two "
        "cores they take time from one another, so a gateway with a core of its own is quicker than this",
        f"- Arrivals: {conditions['requests']} requests a target and round at random moments (open loop), "
        f"{conditions['rate']:g} a second, each of {work['words']} words, {1000 * work['gap']:g} ms apart; times run "
        "from the moment when a request was due",
        "- Added is what goes beyond the stub asked directly: over HTTP for LiteLLM, over gRPC for the others, as each "
        "asks it",
        "- Chunks/s: all streams at once, each as fast as it goes, from the first request to the last end; every "
        "word of every stream is counted and must be there",
        f"- {conditions['rounds']} rounds after a warm-up, all targets in each, in random order; a figure is the "
        "median of the rounds (least–most). Memory: the growth of resident memory in each of "
        f"{conditions['steps']} steps of {conditions['held']} more streams",
        "",
        "| Measure | Gateway | Goal | |" + "".join(map(_heads, compared[0].peers)),
        "|---|---|---|---|" + "".join("---|" * _heads(name).count("|") for name in compared[0].peers),
        *map(_row, compared),
        "",
        "As measured; the stub's own chunks/s over HTTP are also the most that the load generator has counted:",
        "",
        f"| Measure | {' | '.join(targets)} |",
        "|---|" + "---|" * len(targets),
        *(f"| {each.measure} | {' | '.join(map(str, each.targets.values()))} |" for each in measured),
    ]
    return "\n".join(lines) + "\n"


def _heads(peer: str) -> str:
    return f" {peer} | Gateway / {peer} |" + (" Goal | |" if peer == LITELLM else "")


def _row(row: GatewayComparison) -> str:
    goal = "" if row.goal is None else f"{'≤' if row.at_most else '≥'} {row.goal:g}"
    line = f"| {row.measure} | {row.gateway} | {goal} | {_reached(row.met)} |"
    for peer, figure in row.peers.items():
        line += f" {figure} | {row.ratios[peer]} |"
        if peer == LITELLM:
            ratio_goal = "" if row.ratio_goal is None else f"≤ {row.ratio_goal:g}"
            line += f" {ratio_goal} | {_reached(row.ratio_met)} |"
    return line


def _reached(met: bool | None) -> str:
    return "" if met is None else "reached" if met else "**missed**"
