"""An encoder in a simulation: preprocessing in threads, then batches as common/batching.py forms them."""

import math
from collections import deque
from collections.abc import Generator

import simpy

from autoglm.bench.plan.costs import EncoderCost
from autoglm.bench.plan.devices import NICE, NORMAL, Processor

Waits = Generator[simpy.Event, object, None]


class SimulatedEncoder:
    """One replica: it preprocesses on `host` and computes on `device`, which is the same one where encoders use the
    CPU."""

    def __init__(self, env: simpy.Environment, cost: EncoderCost, device: Processor, host: Processor) -> None:
        self._env, self._cost, self._device, self._host = env, cost, device, host
        self._threads = simpy.Resource(env, cost.preprocess_threads)
        self._weight = NICE if device is host else NORMAL
        self._waiting: deque[tuple[float, simpy.Event]] = deque()
        self._draining = False
        self.in_flight = 0

    def encode(self, units: float) -> Waits:
        """Encode a picture (1 unit), or a recording of so many seconds."""
        self.in_flight += 1
        yield self._host.run(self._cost.hop_s)
        with self._threads.request() as thread:
            yield thread
            yield self._host.run(self._cost.preprocess_s * units, NICE)
        pieces = math.ceil(units / self._cost.piece_units - 1e-9)
        for first in range(0, pieces, self._cost.max_batch):
            group = min(self._cost.max_batch, pieces - first)
            yield self._env.all_of([self._submit(units / pieces) for _ in range(group)])
        self.in_flight -= 1

    def _submit(self, units: float) -> simpy.Event:
        done = self._env.event()
        self._waiting.append((units, done))
        if not self._draining:
            self._draining = True
            self._env.process(self._drain())
        return done

    def _drain(self) -> Waits:
        while self._waiting:
            if len(self._waiting) < self._cost.max_batch:
                yield self._env.timeout(self._cost.batch_wait_s)
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._cost.max_batch))]
            longest = max(units for units, _ in batch)  # the others are padded to it
            yield self._device.run(self._cost.forward.seconds(longest * len(batch)), self._weight)
            for _, done in batch:
                done.succeed()
        self._draining = False
