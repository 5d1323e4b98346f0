"""The simulation's parts compared with what queueing theory knows of them. Seeds are fixed: nothing is chance."""

import math
import random
from collections.abc import Callable, Sequence
from statistics import fmean

import pytest
import simpy

from autoglm.bench.plan.costs import PassCost
from autoglm.bench.plan.devices import NICE, Processor, SharedProcessor
from autoglm.bench.plan.encoders import SimulatedEncoder, Waits
from autoglm.bench.plan.engine import SimulatedEngine, TokenSink, limits_of

from .parts import costs, encoder

SERVICE = 0.010  # mean seconds
COUNT = 40_000

Serve = Callable[[], Waits]
Start = Callable[[simpy.Environment], Serve]


def mean_time(load: float, start: Callable[[simpy.Environment], Serve], servers: int = 1) -> float:
    """Return the mean seconds that work takes which arrives at random and keeps `load` of the servers busy."""
    env, draws, times = simpy.Environment(), random.Random(0), list[float]()
    serve = start(env)

    def request() -> Waits:
        arrived = env.now
        yield env.process(serve())
        times.append(env.now - arrived)

    def arrive() -> Waits:
        for _ in range(COUNT):
            yield env.timeout(draws.expovariate(load * servers / SERVICE))
            env.process(request())

    env.process(arrive())
    env.run()
    return fmean(times)


def one_by_one(env: simpy.Environment, draw: Callable[[], float]) -> Serve:
    """An encoder that computes one item after the other, of `draw()` units, without batches and preprocessing."""
    cost = encoder(
        hop_s=0,
        preprocess_s=0,
        forward={"base_s": 0, "token_s": SERVICE},
        max_batch=1,
        batch_wait_s=0,
        piece_units=1000,
    )
    simulated = SimulatedEncoder(env, cost, Processor(env), Processor(env))
    return lambda: simulated.encode(draw())


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_random_work_for_one_server_waits_as_in_m_m_1(load: float) -> None:
    draws = random.Random(1)
    measured = mean_time(load, lambda env: one_by_one(env, lambda: draws.expovariate(1)))
    assert measured == pytest.approx(SERVICE / (1 - load), rel=0.05)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_equal_work_for_one_server_waits_as_in_m_d_1(load: float) -> None:
    measured = mean_time(load, lambda env: one_by_one(env, lambda: 1.0))
    assert measured == pytest.approx(SERVICE * (1 + load / (2 * (1 - load))), rel=0.05)


@pytest.mark.parametrize(("threads", "load"), [(2, 0.5), (2, 0.8), (4, 0.8)])
def test_preprocessing_in_threads_waits_as_in_m_d_c(threads: int, load: float) -> None:
    cost = encoder(
        hop_s=0,
        preprocess_s=SERVICE,
        preprocess_threads=threads,
        forward={"base_s": 0, "token_s": 0},
        max_batch=1,
        batch_wait_s=0,
    )

    def start(env: simpy.Environment) -> Serve:
        simulated = SimulatedEncoder(env, cost, Processor(env), Processor(env))
        return lambda: simulated.encode(1.0)

    measured = mean_time(load, start, threads)
    # Erlang's C gives M/M/c, Cosmetatos' approximation M/D/c from it.
    offered = threads * load
    last = offered**threads / math.factorial(threads) / (1 - load)
    queued = last / (sum(offered**k / math.factorial(k) for k in range(threads)) + last)
    m_m_c = queued * SERVICE / (threads * (1 - load))
    correction = (1 - load) * (threads - 1) * (math.sqrt(4 + 5 * threads) - 2) / (16 * load * threads)
    assert measured - SERVICE == pytest.approx(m_m_c / 2 * (1 + correction), rel=0.05)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_work_that_shares_a_core_takes_as_long_as_in_processor_sharing(load: float) -> None:
    def start(env: simpy.Environment) -> Serve:
        device = SharedProcessor(env, 1)

        def compute() -> Waits:
            yield device.run(SERVICE)

        return compute

    assert mean_time(load, start) == pytest.approx(SERVICE / (1 - load), rel=0.05)


def finish_times(device: SharedProcessor, env: simpy.Environment, *work: tuple[float, float]) -> list[float]:
    """Return when work of (seconds, weight), all given at once, is done."""
    done = [0.0] * len(work)

    def one(number: int, seconds: float, weight: float) -> Waits:
        yield device.run(seconds, weight)
        done[number] = env.now

    for number, (seconds, weight) in enumerate(work):
        env.process(one(number, seconds, weight))
    env.run()
    return done


def test_nice_work_gets_a_tenth_of_a_core_that_others_want() -> None:
    env = simpy.Environment()
    normal, nice = finish_times(SharedProcessor(env, 1), env, (1.0, 1.0), (1.0, NICE))
    assert normal == pytest.approx(1 + NICE)
    assert nice == pytest.approx(2.0)


def test_no_work_uses_more_than_one_core() -> None:
    env = simpy.Environment()
    assert finish_times(SharedProcessor(env, 4), env, (1.0, 1.0), (2.0, 1.0)) == pytest.approx([1.0, 2.0])
    env = simpy.Environment()
    assert finish_times(SharedProcessor(env, 2), env, *[(1.0, 1.0)] * 4) == pytest.approx([2.0] * 4)


def encoded_at(count: int, **fields: float) -> list[float]:
    """Return when `count` items that come together are encoded, 1 unit each."""
    env, times = simpy.Environment(), list[float]()
    device = Processor(env)
    simulated = SimulatedEncoder(env, encoder(hop_s=0, preprocess_s=0, **fields), device, device)

    def one() -> Waits:
        yield from simulated.encode(1.0)
        times.append(env.now)

    for _ in range(count):
        env.process(one())
    env.run()
    return times


def test_items_that_come_together_share_passes() -> None:
    assert encoded_at(1) == pytest.approx([0.002 + 0.005])  # it waits for others, then alone
    full, rest = 0.004 + 8 * 0.001, 0.002 + 0.004 + 2 * 0.001
    assert encoded_at(10)[0] == pytest.approx(0.002 + full)  # the first item finds no other yet
    assert encoded_at(10)[-1] == pytest.approx(0.002 + full + rest)


def test_a_long_recording_is_cut_and_encoded_a_batch_at_a_time() -> None:
    cost = encoder(piece_units=5, max_batch=4, batch_wait_s=0)
    env = simpy.Environment()
    device = Processor(env)
    env.process(SimulatedEncoder(env, cost, device, device).encode(30.0))
    env.run()
    batches = 2 * 0.004 + 30 * 0.001
    assert env.now == pytest.approx(cost.hop_s + 30 * cost.preprocess_s + batches)
    assert cost.alone(30.0) == pytest.approx(env.now - cost.hop_s)


class Client:
    """Notes when its tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def delivered(self, now: float) -> None:
        self.times.append(now)


def test_the_engine_prefills_in_chunks_and_decodes_together() -> None:
    env, stages = simpy.Environment(), costs()
    first, second = Client(), Client()

    def deliver(clients: Sequence[TokenSink]) -> None:
        for client in clients:
            client.delivered(env.now)

    engine = SimulatedEngine(env, stages.decoder, limits_of(stages, 10**9), Processor(env), deliver)
    engine.in_flight += 2
    engine.submit(600, 3, 0, first)
    env.run(until=10)
    prefill = 3 * 0.005 + 600 * 0.0001  # 256 + 256 + 88 tokens
    assert first.times == pytest.approx([prefill, prefill + 0.010, prefill + 0.020])
    engine.submit(256, 2, 192, second)  # 192 tokens are in the prefix cache
    env.run(until=20)
    assert second.times[0] == pytest.approx(10 + 0.005 + 64 * 0.0001)
    assert engine.in_flight == 0


def test_a_pass_is_bound_by_memory_or_by_arithmetic() -> None:
    cost = PassCost(base_s=0, token_s=0.001, context_s=0, weights_s=0.010)
    assert cost.seconds(1) == cost.seconds(10) == pytest.approx(0.010)
    assert cost.seconds(20) == pytest.approx(0.020)
