"""What `autoglm bench tracing` measures: CPU time of the gateway per answer, without traces and with them.

Three gateways in front of one stub take turns, and a collector that drops what it gets receives the spans.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
import uvloop

from autoglm.bench.gateway.generator import LoadClient
from autoglm.bench.gateway.stub import Work
from autoglm.bench.gateway.targets import Target, running_gateway, running_stub
from autoglm.cli.isolation import LOOPBACK

OFF, UNSAMPLED, SAMPLED = "off", "on, none sampled", "on, all sampled"
SAMPLERS = {UNSAMPLED: "always_off", SAMPLED: "always_on"}
AT_A_TIME = 10
WORK = Work(words=16)
SEND_SECONDS = 0.2  # how long spans wait to be sent, and twice of which a turn lasts beyond its last answer


@dataclass(frozen=True, slots=True)
class TracingBenchConfig:
    """How it is measured: in each round every gateway answers `requests` requests, AT_A_TIME of them at once."""

    rounds: int
    requests: int

    @classmethod
    def of(cls, quick: bool) -> "TracingBenchConfig":
        """Return the config of a command line."""
        return cls(3, 100) if quick else cls(9, 250)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return asdict(self) | {"at_a_time": AT_A_TIME, "words": WORK.words}


@dataclass(frozen=True, slots=True)
class TracingCosts:
    """Milliseconds of CPU per answer by gateway, a value a round, and how many spans were sent."""

    milliseconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in (OFF, *SAMPLERS)})
    exports: dict[str, int] = field(default_factory=dict)

    def ratios(self, name: str) -> list[float]:
        """Return the times with traces as multiples of those without, round by round."""
        return [a / b for a, b in zip(self.milliseconds[name], self.milliseconds[OFF], strict=True)]


class Collector(grpc.GenericRpcHandler):
    """A collector of OpenTelemetry that drops what it gets, and counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """Handle every method."""
        return grpc.unary_unary_rpc_method_handler(self._drop)

    def _drop(self, _spans: bytes, _context: grpc.ServicerContext) -> bytes:
        self.calls += 1
        return b""


@contextmanager
def running_collector() -> Iterator[tuple[Collector, str]]:
    """Run a collector in the block and give its URL."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((collector,))
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    server.start()
    try:
        yield collector, f"http://{LOOPBACK}:{port}"
    finally:
        server.stop(0).wait()


def run(config: TracingBenchConfig, tell: Callable[[str, int, int], None]) -> TracingCosts:
    """Measure; `tell` hears what is done next, how many such things are done, and how many there are.

    Raises StartError, Incomplete.
    """
    tell("starting", 0, 1)
    costs = TracingCosts()
    with ExitStack() as stack:
        stub_port = stack.enter_context(running_stub())[0]["grpc"]
        gateways, collectors = dict[str, Target](), dict[str, Collector]()
        gateways[OFF] = stack.enter_context(running_gateway(stub_port))
        for name, sampler in SAMPLERS.items():
            collectors[name], url = stack.enter_context(running_collector())
            gateways[name] = stack.enter_context(running_gateway(stub_port, tracing_to(url, sampler)))
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        runner.run(_measure(gateways, config, costs, tell))
        costs.exports.update({name: collector.calls for name, collector in collectors.items()})
    return costs


def tracing_to(url: str, sampler: str) -> Mapping[str, str]:
    """Return the variables of a gateway that sends its traces to a collector."""
    delay = f"{SEND_SECONDS * 1000:.0f}"
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_TRACES_SAMPLER": sampler, "OTEL_BSP_SCHEDULE_DELAY": delay}


async def _measure(
    gateways: Mapping[str, Target],
    config: TracingBenchConfig,
    costs: TracingCosts,
    tell: Callable[[str, int, int], None],
) -> None:
    clients = {name: target.connect() for name, target in gateways.items()}
    for client in clients.values():
        await _ask(client, config.requests)  # not counted: each gateway warms up
    for number in range(config.rounds):
        order = list(gateways)
        random.Random(number).shuffle(order)
        for turn, name in enumerate(order):
            tell(name, number * len(order) + turn, config.rounds * len(order))
            before = gateways[name].cpu_seconds
            await _ask(clients[name], config.requests)
            await asyncio.sleep(2 * SEND_SECONDS)  # the last spans belong to this turn
            costs.milliseconds[name].append(1000 * (gateways[name].cpu_seconds - before) / config.requests)
    for client in clients.values():
        await client.close()


async def _ask(client: LoadClient, count: int) -> None:
    free = asyncio.Semaphore(AT_A_TIME)

    async def one() -> None:
        async with free:
            await client.ask(WORK, False, time.perf_counter())

    await asyncio.gather(*(one() for _ in range(count)))
