"""Independent shards of a simulation, in as many processes as there are cores.

With many decoders a shard has DECODERS of them, and their part of the requests, as a router that sees only those would
give them. So the decoders that are simulated do not grow in number with the request rate; the encoders of a shard do.
There are always SHARDS shards, whatever the machine, so that a seed gives one result.
"""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import active_children, get_context

from autoglm.bench.plan.costs import StageCosts
from autoglm.bench.plan.placement import Placement, PlacementShard
from autoglm.bench.plan.simulation import SimulatedLatency, Simulation, SimulationConfig
from autoglm.bench.plan.workload import Workload

SHARDS = 4
DECODERS = 8  # of a shard at most

Progress = Callable[[int, int], object]  # shards that are done, of how many


class Replications:
    """Simulates plans in the processes of `pool`."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool

    def simulate(
        self,
        workload: Workload,
        costs: StageCosts,
        placement: Placement,
        config: SimulationConfig,
        progress: Progress = lambda done, total: None,
    ) -> SimulatedLatency:
        """Return what all shards together saw; `config.requests` is divided among them."""
        shard = placement.shard(DECODERS)
        each = replace(config, requests=max(1, config.requests // SHARDS))
        configs = [replace(each, seed=config.seed * SHARDS + number) for number in range(SHARDS)]
        shards = [self._pool.submit(_simulate, workload, costs, shard, one) for one in configs]
        pending = set(shards)
        while pending:
            progress(len(shards) - len(pending), len(shards))
            _, pending = wait(pending, return_when=FIRST_COMPLETED)
        progress(len(shards), len(shards))
        return _merged([shard.result() for shard in shards])


@contextmanager
def replications() -> Iterator[Replications]:
    """Give what simulates inside the block; its processes end with it, at once when the block raises."""
    others = active_children()
    pool = ProcessPoolExecutor(min(SHARDS, os.cpu_count() or 1), get_context("spawn"), _ignore_interrupts)
    try:
        yield Replications(pool)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in active_children():
            if process not in others:
                process.terminate()
        raise
    pool.shutdown()


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which every process of a terminal gets, to the one that started the simulation."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _simulate(
    workload: Workload, costs: StageCosts, shard: PlacementShard, config: SimulationConfig
) -> SimulatedLatency:
    return Simulation(workload, costs, shard, config).run()


def _merged(shards: list[SimulatedLatency]) -> SimulatedLatency:
    merged = SimulatedLatency()
    for shard in shards:
        merged.extend(shard)
    merged.busy = {i: sum(shard.busy[i] for shard in shards) / len(shards) for i in shards[0].busy}
    return merged
