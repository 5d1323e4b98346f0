"""How many replicas a workload needs: the fewest that a simulation finds to meet the SLO."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Literal

from autoglm.bench.plan.costs import EncoderCost, StageCosts
from autoglm.bench.plan.placement import FULL, Placement, Service, place
from autoglm.bench.plan.replications import Replications
from autoglm.bench.plan.schema import PlanError
from autoglm.bench.plan.simulation import SimulatedLatency, SimulationConfig
from autoglm.bench.plan.workload import RequestClass, Workload

Kind = Literal["mesh", "one process"]
Tell = Callable[[str, int, int], object]  # a label, what is done, of how many

IDLE_REQUESTS, SEARCH_REQUESTS = 400, 4000
LEAST, GROWTH, MAX_ROUNDS = 0.95, 0.08, 50
IDLE_SECONDS = 60.0  # between requests that do not meet
PERCENTILES = (0.50, 0.99)


def percentiles(values: Iterable[float], shares: Sequence[float]) -> list[float]:
    """Return for each share the smallest of `values` that so many of them do not exceed; 0 without values."""
    ordered = sorted(values)
    return [ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0 for share in shares]


@dataclass(frozen=True, slots=True)
class ExpectedLatency:
    """What clients will see, in milliseconds."""

    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float

    @classmethod
    def of(cls, latency: SimulatedLatency) -> "ExpectedLatency":
        """Return the percentiles of what was simulated."""
        first, between = percentiles(latency.ttft, PERCENTILES), percentiles(latency.itl, PERCENTILES)
        return cls(*(round(1000 * seconds, 2) for seconds in (*first, *between)))


@dataclass(frozen=True, slots=True)
class Sized:
    """The fewest replicas that meet the SLO (`needed`), those that its availability asks for, and where they are."""

    kind: Kind
    needed: Mapping[Service, int]
    replicas: Mapping[Service, int]
    placement: Placement
    expected: ExpectedLatency


@dataclass(frozen=True)
class Demand:
    """What a workload asks of each service, in busy replicas."""

    workload: Workload
    costs: StageCosts

    @cached_property
    def gateway(self) -> float:
        """Cores of gateways."""
        cost = self.costs.gateway
        each = [cost.request_cpu_s + one.output_tokens * cost.token_cpu_s for one in self.workload.classes]
        return sum(rate * seconds for rate, seconds in zip(self.workload.rates, each, strict=True))

    def encoder(self, service: Service, batch: int) -> float:
        """Replicas of an encoder, in batches of `batch`."""
        cost, rate = self._encoder(service)
        return rate * max(cost.unit_seconds(batch), cost.preprocess_s / cost.preprocess_threads)

    def _encoder(self, service: Service) -> tuple[EncoderCost, float]:
        if service == "vision":
            return self.costs.vision, self.workload.image_rate
        return self.costs.speech, self.workload.audio_rate

    @cached_property
    def decoder(self) -> float:
        """Replicas of the decoder, with full batches."""
        pairs = zip(self.workload.rates, self.workload.classes, strict=True)
        return sum(rate * self._decoder_seconds(one) for rate, one in pairs)

    def _decoder_seconds(self, one: RequestClass) -> float:
        costs, cost = self.costs, self.costs.decoder
        tokens = one.prompt_tokens + one.images * costs.vision.tokens_per_unit
        tokens += one.audio_seconds * costs.speech.tokens_per_unit
        new, batch = max(1.0, tokens - one.prefix_tokens), cost.max_num_seqs
        chunks = math.ceil(new / cost.max_num_batched_tokens)
        prefill = chunks * cost.prefill.seconds(new / chunks, new / chunks * (one.prefix_tokens + new / 2))
        step = cost.decode.seconds(batch, batch * (tokens + one.output_tokens / 2))
        return prefill + one.output_tokens * step / batch

    @cached_property
    def monolith(self) -> float:
        """Replicas of a process that does everything."""
        encoders = (self.costs.vision, self.workload.image_rate), (self.costs.speech, self.workload.audio_rate)
        return self.decoder + sum(rate * cost.unit_seconds(cost.max_batch) for cost, rate in encoders)

    def counts(self, kind: Kind) -> dict[Service, int]:
        """Return the fewest replicas that could be enough."""
        if kind == "one process":
            return {"monolith": max(1, math.ceil(self.monolith / LEAST))}
        counts: dict[Service, int] = {"decoder": max(1, math.ceil(self.decoder / LEAST))}
        encoders: tuple[Service, ...] = ("vision", "speech")
        for service in encoders:
            cost, rate = self._encoder(service)
            if rate:
                counts[service] = max(1, math.ceil(self.encoder(service, cost.max_batch) / LEAST))
        return counts

    def of_one(self, counts: Mapping[Service, int], shared: bool) -> dict[Service, float]:
        """Return the cores that one replica keeps busy; `shared` says whether decoders may share their devices."""
        whole = {"decoder": self.decoder, "monolith": self.monolith, "gateway": self.gateway}
        demand: dict[Service, float] = {}
        for service, count in counts.items():
            busy = whole[service] if service in whole else self.encoder(service, 1)
            demand[service] = min(FULL, busy / count)
            if service in ("decoder", "monolith") and not shared:
                demand[service] = FULL * self.costs.cores if not self.costs.on_cpu else FULL
        return demand


def gateways(workload: Workload, costs: StageCosts) -> int:
    """Return how many gateway processes are needed, each of which uses one core."""
    return max(1, math.ceil(Demand(workload, costs).gateway / FULL))


@dataclass(frozen=True)
class Sizer:
    """Finds plans for a workload on one kind of device."""

    workload: Workload
    costs: StageCosts
    simulator: Replications
    requests: int
    seed: int
    tell: Tell

    def size(self, kind: Kind) -> Sized:
        """Return the smallest plan; raises PlanError that names the stage that is short where there is none."""
        counts = Demand(self.workload, self.costs).counts(kind)
        idle = self._check_idle(counts)
        placement = self._search(kind, counts, idle)
        latency = self._simulate(placement, self.requests, f"{kind}: {self.requests} requests")
        replicas = with_spares(counts, self.workload.slo.availability, self.workload.slo.replica_availability)
        placed = self._place(replicas, shared=not placement.dedicated)
        return Sized(kind, counts, replicas, placed, ExpectedLatency.of(latency))

    def _search(self, kind: Kind, counts: dict[Service, int], idle: SimulatedLatency) -> Placement:
        """Add replicas to `counts` where it is short, until the SLO is met."""
        for _ in range(MAX_ROUNDS):
            label = f"{kind}: trying {', '.join(f'{count} {name}' for name, count in sorted(counts.items()))}"
            shared, alone = (self._place(counts, shared) for shared in (True, False))
            if len(shared.devices) < len(alone.devices):
                latency = self._simulate(shared, SEARCH_REQUESTS, f"{label}, sharing devices")
                if self._short(latency, idle) is None:
                    return shared
            latency = self._simulate(alone, SEARCH_REQUESTS, label)
            waited_for = self._short(latency, idle)
            if waited_for is None:
                return alone
            short = waited_for if waited_for in counts else "monolith"
            counts[short] += max(1, int(GROWTH * counts[short]))
        raise PlanError(
            f"slo: no plan meets it; after {counts[short]} replicas, {short} is still short: "
            f"{self._missed(ExpectedLatency.of(latency))}"
        )

    def _short(self, latency: SimulatedLatency, idle: SimulatedLatency) -> Service | None:
        """Return the service that most of the late answers waited for, or None if the SLO is met."""
        seen, slo = ExpectedLatency.of(latency), self.workload.slo
        if seen.ttft_p99_ms > slo.ttft_p99_ms:
            late = [i for i, ttft in enumerate(latency.ttft) if 1000 * ttft >= seen.ttft_p99_ms]
            extra = {
                name: fmean(waits[i] for i in late) - fmean(idle.waits[name])
                for name, waits in latency.waits.items()
                if name != "gateway"
            }
            return max(extra, key=lambda name: extra[name])
        return "decoder" if seen.itl_p99_ms > slo.itl_p99_ms else None

    def _missed(self, seen: ExpectedLatency) -> str:
        slo = self.workload.slo
        return (
            f"TTFT p99 {seen.ttft_p99_ms:.0f} ms (wanted {slo.ttft_p99_ms:g}), "
            f"between tokens p99 {seen.itl_p99_ms:.1f} ms (wanted {slo.itl_p99_ms:g})"
        )

    def _place(self, counts: Mapping[Service, int], shared: bool) -> Placement:
        every = dict(counts)
        if self.costs.on_cpu:
            every["gateway"] = gateways(self.workload, self.costs)
        return place(self.costs, every, Demand(self.workload, self.costs).of_one(every, shared))

    def _check_idle(self, counts: Mapping[Service, int]) -> SimulatedLatency:
        """Return what requests see that meet no other; raises PlanError if that is too slow already."""
        quiet = self.workload.model_copy(update={"request_rate": 1 / IDLE_SECONDS, "burstiness": 1.0})
        placement = self._place(dict.fromkeys(counts, 1), shared=False)
        config = SimulationConfig(IDLE_REQUESTS, self.seed)
        latency = self.simulator.simulate(quiet, self.costs, placement, config)
        seen, slo = ExpectedLatency.of(latency), self.workload.slo
        if seen.ttft_p99_ms > slo.ttft_p99_ms:
            each = {name: percentiles(waits, PERCENTILES)[1] for name, waits in latency.waits.items()}
            slowest = max(each, key=lambda name: each[name])
            raise PlanError(
                f"slo.ttft_p99_ms: {slo.ttft_p99_ms:g} ms cannot be met on {self.costs.device}: without any other load "
                f"it is {seen.ttft_p99_ms:.0f} ms, and {slowest} alone takes {1000 * each[slowest]:.0f} ms"
            )
        if seen.itl_p99_ms > slo.itl_p99_ms:
            raise PlanError(
                f"slo.itl_p99_ms: {slo.itl_p99_ms:g} ms cannot be met on {self.costs.device}: decoder takes "
                f"{seen.itl_p99_ms:.1f} ms for a token without any other load"
            )
        return latency

    def _simulate(self, placement: Placement, requests: int, label: str) -> SimulatedLatency:
        config = SimulationConfig(requests, self.seed)
        return self.simulator.simulate(
            self.workload, self.costs, placement, config, lambda done, total: self.tell(label, done, total)
        )


def with_spares(counts: Mapping[Service, int], availability: float, of_one: float) -> dict[Service, int]:
    """Return how many replicas each service has to have, so that with probability `availability` at least `counts` of
    every service run, where each replica runs with probability `of_one`, whatever the others do."""
    replicas = dict(counts)

    def up(service: Service) -> float:
        return _at_least(counts[service], replicas[service], of_one)

    while math.prod(map(up, replicas)) < availability:
        replicas[min(replicas, key=up)] += 1
    return replicas


def _at_least(needed: int, count: int, of_one: float) -> float:
    """Return the probability that `needed` of `count` replicas run."""
    return sum(
        math.exp(
            math.lgamma(count + 1) - math.lgamma(up + 1) - math.lgamma(count - up + 1)
            + up * math.log(of_one) + (count - up) * math.log1p(-of_one)
        )
        for up in range(needed, count + 1)
    )  # fmt: skip
