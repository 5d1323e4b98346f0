"""Measures whether memory stays flat beyond the bounds of all caches: python -m tests.faults.soak

It starts a mesh with small caches, sends several passes over more images and recordings than they hold, and writes
benchmarks/results/soak-<date>.json and .md: the memory of each process after each pass, and how it goes on.
"""

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import linear_regression
from typing import Any

import httpx
import numpy as np
import psutil
import redis

from autoglm.bench.smoke.report import machine_lines, write
from autoglm.bench.smoke.workloads import wav
from autoglm.cli.api import audio_bytes_part
from autoglm.common.bundle import chosen_bundle, write_manifest
from autoglm.training.measured import conditions

from ..asking import CHAT, caches
from ..mesh import Mesh, running_mesh
from ..waiting import NET_SECONDS
from .attacks.media import small_picture
from .attacks.sending import user
from .neighbour import request
from .outages import counted

PASSES, SETTLED = 16, 8  # memory is to be flat after the first of them
IMAGES, RECORDINGS, TOGETHER, USERS = 480, 48, 4, 4
CONTEXT = 512  # tokens: the prefix cache holds 32 conversations of this length
CACHE_BYTES = 4 * 2**20  # of the gateway; an image has 125 kB
REDIS_BYTES = 16 * 2**20
Parts = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Growth:
    """The resident memory of a process after each pass, in MiB, and the slope of the settled ones, in MiB per pass."""

    process: str
    after: Sequence[float]
    slope: float


@dataclass(frozen=True, slots=True)
class Pass:
    """How long a pass took, and how many embeddings came from where."""

    seconds: float
    found: Mapping[str, int]


def drawn_media() -> list[Parts]:
    """Return the media of a pass, in requests."""
    drawn = np.random.default_rng(0)
    images = [small_picture(drawn) for _ in range(IMAGES)]
    lengths = drawn.integers(2000, 16000, RECORDINGS)  # samples: different numbers of tokens
    recordings = [audio_bytes_part(wav(drawn.normal(0, 0.1, each).astype(np.float32), 8000)) for each in lengths]
    return [*grouped(images), *grouped(recordings)]


def grouped(parts: Parts) -> list[Parts]:
    """Return the parts in messages of TOGETHER."""
    return [parts[start : start + TOGETHER] for start in range(0, len(parts), TOGETHER)]


def send_all(http: httpx.Client, media: Sequence[Parts]) -> Pass:
    """Send a pass, each request with a format of its own."""

    def send(number: int) -> list[str]:
        choice = {"choice": [f"yes, {number}", f"no, {number}"]}
        body = request(max_tokens=8, messages=user(*media[number]), structured_outputs=choice)
        response = http.post(CHAT, json=body)
        assert response.status_code == 200, response.text
        return caches(response.json())

    started = time.monotonic()
    with ThreadPoolExecutor(USERS) as users:
        found = Counter(cache for seen in users.map(send, range(len(media))) for cache in seen)
    return Pass(time.monotonic() - started, dict(found))


def processes(mesh: Mesh) -> dict[str, psutil.Process]:
    """Return the processes that requests go through."""
    replicas = {f"{name} replica": mesh.replica(name) for name in ("vision", "speech", "decoder")}
    return {"gateway": mesh.gateway(), "HAProxy": mesh.haproxy(), "cache": mesh.cache()} | replicas


def measure(mesh: Mesh) -> tuple[list[Growth], list[Pass]]:
    """Send the passes; return the memory of each process."""
    media, watched, passes = drawn_media(), processes(mesh), list[Pass]()
    after: dict[str, list[float]] = {name: [] for name in watched}
    with httpx.Client(base_url=mesh.http_url, timeout=NET_SECONDS, trust_env=False) as http:
        for number in range(PASSES):
            passes.append(send_all(http, media))
            for name, process in watched.items():
                after[name].append(round(process.memory_info().rss / 2**20, 1))
            print(number + 1, passes[-1], {name: values[-1] for name, values in after.items()}, flush=True)
    return [Growth(name, values, slope(values[SETTLED - 1 :])) for name, values in after.items()], passes


def slope(values: Sequence[float]) -> float:
    """Return how much each value is above the one before, by least squares."""
    return round(linear_regression(range(len(values)), values).slope, 2)


def small_context(folder: Path) -> Path:
    """Return a copy of the bundle whose context, and with it the prefix cache, is small."""
    shutil.copytree(chosen_bundle(), folder)
    path = folder / "decoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": CONTEXT}))
    manifest = json.loads((folder / "bundle.json").read_text())
    write_manifest(folder, manifest["name"], manifest["architecture"])
    return folder


def as_markdown(found: Mapping[str, Any], growths: Sequence[Growth], passes: Sequence[Pass]) -> str:
    """Return the table with its conditions."""
    seconds, found_there = [each.seconds for each in passes], Counter[str]()
    for each in passes:
        found_there.update(each.found)
    numbers = " | ".join(str(number + 1) for number in range(PASSES))
    lines = [
        f"# {found['benchmark']}, {found['date']}",
        "",
        *machine_lines(found),
        f"- Each pass: {IMAGES} images and {RECORDINGS} recordings, the same each time, {TOGETHER} in a request with a"
        f" format of its own, from {USERS} users; {min(seconds):.0f} to {max(seconds):.0f} s a pass",
        f"- Bounds: {CACHE_BYTES >> 20} MiB of embeddings in the gateway, {REDIS_BYTES >> 20} MiB in the cache, and 32"
        f" prefixes of {CONTEXT} tokens in the decoder: each holds less than a pass has. Embeddings came from:"
        f" {counted(found_there)}",
        f"- Resident memory after each pass, in MiB; the slope is that of the passes from {SETTLED} on",
        "",
        f"| Process | {numbers} | MiB per pass |",
        "|---|" + "---|" * (PASSES + 1),
        *(
            f"| {each.process} | {' | '.join(f'{value:.0f}' for value in each.after)} | {each.slope} |"
            for each in growths
        ),
    ]
    return "\n".join(lines) + "\n"


def row(growth: Growth) -> str:
    """Return the memory of a process as a line of the table."""
    return f"| {growth.process} | {' | '.join(f'{value:.0f}' for value in growth.after)} | {growth.slope} |"


def main() -> None:
    """Start a mesh, measure, and write down what was found."""
    found = conditions() | {"benchmark": "python -m tests.faults.soak"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {"AUTOGLM_BUNDLE": str(small_context(folder / "bundle")), "AUTOGLM_CACHE_BYTES": str(CACHE_BYTES)}
        with running_mesh(folder / "serve.log", **settings) as mesh:
            with redis.Redis.from_url(mesh.redis_url) as store:
                store.config_set("maxmemory", REDIS_BYTES)
            growths, passes = measure(mesh)
    figures = {"passes": [asdict(each) for each in passes], "processes": [asdict(growth) for growth in growths]}
    as_json = json.dumps(found | figures, indent=2, ensure_ascii=False) + "\n"
    results = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    write(results, "soak", found, as_json, as_markdown(found, growths, passes))


if __name__ == "__main__":
    main()
