"""A discrete-event simulation of requests on their way through gateway, encoders and decoder.

Two plans that are simulated with one seed get the same requests at the same times.
"""

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import simpy

from autoglm.bench.plan.costs import EncoderCost, StageCosts
from autoglm.bench.plan.devices import Processor, SharedProcessor
from autoglm.bench.plan.encoders import SimulatedEncoder, Waits
from autoglm.bench.plan.engine import OneProcess, SimulatedEngine, TokenSink, limits_of
from autoglm.bench.plan.placement import PlacementShard, Service, cache_bytes
from autoglm.bench.plan.workload import Workload

WARM_UP = 0.2  # of the requests, before those that count; at least so many as fill the decoders


@dataclass(frozen=True, slots=True)
class SimulationConfig:
    """How many requests count, and the seed of all that is drawn."""

    requests: int
    seed: int


@dataclass(slots=True)
class SimulatedLatency:
    """What clients saw, in seconds: until the first token, between tokens, and what the first token waited for."""

    ttft: "array[float]" = field(default_factory=lambda: array("d"))
    itl: "array[float]" = field(default_factory=lambda: array("d"))
    waits: "dict[Service, array[float]]" = field(
        default_factory=lambda: {name: array("d") for name in ("gateway", "vision", "speech", "decoder")}
    )
    busy: dict[int, float] = field(default_factory=dict)  # share of each device's time

    def extend(self, other: "SimulatedLatency") -> None:
        """Add the requests of another simulation."""
        self.ttft.extend(other.ttft)
        self.itl.extend(other.itl)
        for name, waits in self.waits.items():
            waits.extend(other.waits[name])


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One request: its sizes, and the media that the cache does not have, in units of their encoders."""

    prompt: int
    answer: int
    prefix: int
    images: int
    audio_seconds: float


class _Answer:
    """Takes the tokens of one request."""

    __slots__ = ("_last", "_left", "_run", "arrival", "measured", "ready", "submitted")

    def __init__(self, run: "Simulation", arrival: float, tokens: int, measured: bool) -> None:
        self._run, self.arrival, self._left, self.measured = run, arrival, tokens, measured
        self._last, self.submitted = 0.0, 0.0
        self.ready: dict[Service, float] = {}

    def delivered(self, now: float) -> None:
        if not self.measured:
            return
        if self._last:
            self._run.latency.itl.append(now - self._last)
        else:
            self._run.first_token(self, now)
        self._last, self._left = now, self._left - 1
        if not self._left:
            self._run.answered()


class Simulation:
    """Simulates the requests of `workload` that reach the replicas of `shard`."""

    def __init__(self, workload: Workload, costs: StageCosts, shard: PlacementShard, config: SimulationConfig) -> None:
        placement = shard.placement
        self.env, self.latency = simpy.Environment(), SimulatedLatency()
        self._workload, self._costs, self._config, self._shard = workload, costs, config, shard
        self._arrivals, self._sizes = random.Random(f"{config.seed} arrivals"), random.Random(f"{config.seed} sizes")
        self._devices = [self._device(services) for services in placement.devices]
        cpus = self._devices if costs.on_cpu else [Processor(self.env)] * len(self._devices)
        self.host = cpus[0]
        self._engines = list[SimulatedEngine]()
        self._encoders: dict[Service, list[SimulatedEncoder]] = {"vision": [], "speech": []}
        for services, device, host in zip(placement.devices, self._devices, cpus, strict=True):
            self._start(services, device, host)
        self._left = config.requests

    def _device(self, services: tuple[Service, ...]) -> Processor:
        alone = len(services) == 1 and not self._costs.on_cpu
        return Processor(self.env) if alone else SharedProcessor(self.env, self._costs.cores)

    def _start(self, services: tuple[Service, ...], device: Processor, host: Processor) -> None:
        decoders = services.count("decoder") + services.count("monolith")
        for service in services:
            if service == "vision" or service == "speech":
                encoder = SimulatedEncoder(self.env, self._cost(service), device, host)
                self._encoders[service].append(encoder)
            elif service != "gateway":
                kind = OneProcess if service == "monolith" else SimulatedEngine
                limits = limits_of(self._costs, cache_bytes(self._costs, services) // decoders)
                self._engines.append(kind(self.env, self._costs.decoder, limits, device, self._deliver))

    def _cost(self, service: Service) -> EncoderCost:
        return self._costs.vision if service == "vision" else self._costs.speech

    def run(self, progress: Callable[[int], object] = lambda done: None) -> SimulatedLatency:
        """Simulate until every request that counts has its last token; `progress` hears of first tokens."""
        self._progress = progress
        self._done = self.env.event()
        self.env.process(self._arrive())
        self.env.run(until=self._done)
        capacity = {i: 1 if type(device) is Processor else self._costs.cores for i, device in enumerate(self._devices)}
        self.latency.busy = {i: device.busy / (capacity[i] * self.env.now) for i, device in enumerate(self._devices)}
        return self.latency

    # --- requests ----------------------------------------------------------------------------------

    def _arrive(self) -> Waits:
        """Requests arrive until all that count are answered: the last ones see as much load as the others."""
        shape, number = self._workload.burstiness, 0
        warm_up = max(round(WARM_UP * self._config.requests), len(self._engines) * self._costs.decoder.max_num_seqs)
        seen = max(self._shard.of_encoders, self._shard.of_decoders)
        rate, followed = self._workload.request_rate * seen, self._shard.of_decoders / seen
        while True:
            yield self.env.timeout(self._arrivals.gammavariate(shape, 1 / (shape * rate)))
            drawn = self._draw()
            if self._sizes.random() < followed:
                self.env.process(self._answer(drawn, warm_up <= number < warm_up + self._config.requests))
                number += 1
            elif drawn.images or drawn.audio_seconds:
                for kind, units in _media(drawn):
                    self.env.process(self._encode(kind, units))

    def _draw(self) -> _Drawn:
        classes, draw = self._workload.classes, self._sizes
        (asked,) = draw.choices(classes, self._workload.rates)
        missed = [draw.random() >= self._workload.cache.hit_ratio for _ in range(asked.images + 1)]
        seconds = max(0.1, draw.gauss(asked.audio_seconds, asked.audio_seconds_stdev)) if asked.audio_seconds else 0.0
        prompt = _length(draw, asked.prompt_tokens, asked.prompt_tokens_stdev, asked.prefix_tokens)
        answer = _length(draw, asked.output_tokens, asked.output_tokens_stdev)
        prompt += round(asked.images * self._costs.vision.tokens_per_unit)
        prompt += round(seconds * self._costs.speech.tokens_per_unit)
        answer = min(answer, self._costs.decoder.max_model_len - 1)
        prompt = min(prompt, self._costs.decoder.max_model_len - answer)
        return _Drawn(prompt, answer, asked.prefix_tokens, sum(missed[1:]), seconds if missed[0] else 0.0)

    def _answer(self, drawn: _Drawn, measured: bool) -> Waits:
        answer = _Answer(self, self.env.now, drawn.answer, measured)
        yield self.host.run(self._costs.gateway.request_s)
        answer.ready["gateway"] = self.env.now
        # A process that does everything is chosen at once, a decoder when the media are encoded.
        process = self._least_busy() if isinstance(self._engines[0], OneProcess) else None
        media = [self.env.process(self._encoded(kind, units, answer, process)) for kind, units in _media(drawn)]
        if media:
            yield self.env.all_of(media)
        answer.submitted = self.env.now
        (process or self._least_busy()).submit(drawn.prompt, drawn.answer, drawn.prefix, answer)

    def _least_busy(self) -> SimulatedEngine:
        """Return the engine with the fewest requests, as HAProxy's leastconn does, and count one more there."""
        engine = min(self._engines, key=lambda each: each.in_flight)
        engine.in_flight += 1
        return engine

    def _encoded(self, kind: Service, units: float, answer: _Answer, process: SimulatedEngine | None) -> Waits:
        if isinstance(process, OneProcess):
            cost = self._cost(kind)
            yield self.host.run(cost.preprocess_s * units)
            yield process.encode(kind, cost, units)
        else:
            yield self.env.process(self._encode(kind, units))
        answer.ready[kind] = self.env.now

    def _encode(self, kind: Service, units: float) -> Waits:
        encoder = min(self._encoders[kind], key=lambda each: each.in_flight)
        yield from encoder.encode(units)

    def _deliver(self, answers: Sequence[TokenSink]) -> None:
        """Have the gateway pass on a token of each answer. Where nobody else wants its cores, that moves all tokens by
        the same, and is left out."""
        if not self._costs.on_cpu:
            self._delivered(answers)
            return
        sent = self.host.run(self._costs.gateway.token_s * len(answers))
        assert sent.callbacks is not None  # it is not over yet
        sent.callbacks.append(lambda _: self._delivered(answers))

    def _delivered(self, answers: Sequence[TokenSink]) -> None:
        for answer in answers:
            answer.delivered(self.env.now)

    def first_token(self, answer: _Answer, now: float) -> None:
        """Record when an answer began, and what it waited for."""
        waits, begun = self.latency.waits, answer.ready["gateway"]
        self.latency.ttft.append(now - answer.arrival)
        waits["gateway"].append(begun - answer.arrival)
        waits["vision"].append(answer.ready.get("vision", begun) - begun)
        waits["speech"].append(answer.ready.get("speech", begun) - begun)
        waits["decoder"].append(now - answer.submitted)
        self._progress(1)

    def answered(self) -> None:
        """Count an answer that is complete, and end after the last that counts."""
        self._left -= 1
        if not self._left:
            self._done.succeed()


def _length(draw: random.Random, mean: int, stdev: float, least: int = 1) -> int:
    return max(1, least, round(draw.gauss(mean, stdev))) if stdev else mean


def _media(drawn: _Drawn) -> list[tuple[Service, float]]:
    pictures: list[tuple[Service, float]] = [("vision", 1.0)] * drawn.images
    return pictures + ([("speech", drawn.audio_seconds)] if drawn.audio_seconds else [])
