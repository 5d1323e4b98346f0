"""What `autoglm bench cache` found, as JSON and as tables."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from autoglm.bench.cache.bench import CacheResults
from autoglm.bench.cache.fetching import FetchComparison
from autoglm.bench.cache.trace import TOKEN_BYTES, TraceResult
from autoglm.bench.smoke.report import machine_lines


def as_json(found: Mapping[str, Any], measured: CacheResults) -> str:
    """Return everything as JSON."""
    return json.dumps({**found, **asdict(measured)}, indent=2, ensure_ascii=False) + "\n"


def as_markdown(found: Mapping[str, Any], measured: CacheResults) -> str:
    """Return the tables with what it takes to read them."""
    lines = [
        f"# {found['benchmark']}, {found['date']}",
        "",
        *machine_lines(found),
        f"- {found['rounds']} rounds after one that warms up, both sides in each; a figure is the median (least–most)",
        "",
        "Encoding in this process with the bundle's encoders, compared with fetching from a Redis on this machine.",
        "Over a network of the given speed, fetching would take as long as encoding:",
        "",
        "| Modality | Medium | Embedding, kB | Encode, ms | Fetch, ms | Encode / fetch, × | Network, Mbit/s |",
        "|---|---|---|---|---|---|---|",
        *map(_comparison, measured.fetching),
        "",
        f"{found['requests']} requests for {found['pictures']} pictures with Zipf's frequencies, sent to "
        f"{found['gateways']} gateways at random;",
        f"an embedding has {TOKEN_BYTES} bytes. Cache sizes are shares of all pictures. The first tenth of them is",
        "not counted:",
        "",
        "| Exponent | A gateway keeps | Redis keeps | Own memory | Shared with another request | Redis | Encoded "
        "| MB per gateway | MB in Redis |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(_trace, measured.traces),
    ]
    return "\n".join(lines) + "\n"


def _comparison(row: FetchComparison) -> str:
    link = f"{row.slowest_link:.0f}" if row.ratio.median > 1 else "any"
    size = f"{row.bytes / 1000:.0f}"
    return f"| {row.modality} | {row.medium} | {size} | {row.encode} | {row.fetch} | {row.ratio} | {link} |"


def _trace(row: TraceResult) -> str:
    shares = " | ".join(f"{share:.1%}" for share in (row.local, row.shared, row.redis, row.encoded))
    sizes = f"{row.sizes.local:.0%} | {row.sizes.redis:.0%}"
    return f"| {row.exponent} | {sizes} | {shares} | {row.mb_per_gateway:.0f} | {row.redis_mb:.0f} |"
