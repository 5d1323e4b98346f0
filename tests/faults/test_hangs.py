"""A replica of which a thread hangs ends itself, and Serve starts another; the mesh ends when Ray does."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from ..asking import Asker
from ..cases import screen_cases
from ..mesh import Mesh, running_mesh
from ..waiting import NET_SECONDS, eventually
from .causes import fault

# Python runs this in every process of the mesh. A file's name chooses what hangs from then on.
SITE = """\
import os, sys, threading, time
from pathlib import Path

forever = threading.Event()

async def hang_in_the_pass(batcher, batch):
    import asyncio
    await asyncio.get_running_loop().run_in_executor(batcher._thread, forever.wait)

FAULTS = {
    "event loop": ("autoglm.common.batching", "Batcher", "submit", lambda batcher, item: forever.wait()),
    "forward": ("autoglm.common.batching", "Batcher", "_compute", hang_in_the_pass),
    "engine": ("autoglm.decoder.engine.core", "EngineCore", "step", lambda core: forever.wait()),
}

def watch():
    while True:
        time.sleep(0.1)  # the test says what hangs by making a file, which nothing here can wait for
        for name, (module, owner, attribute, hang) in FAULTS.items():
            if Path(os.environ["FAULTS"], name).exists() and module in sys.modules:
                setattr(getattr(sys.modules[module], owner), attribute, hang)

threading.Thread(target=watch, daemon=True).start()
"""


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory, faults: Path) -> Iterator[Mesh]:
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(SITE)
    log = tmp_path_factory.mktemp("fragile") / "serve.log"
    with running_mesh(log, "--modalities", "vision", PYTHONPATH=str(site), FAULTS=str(faults)) as mesh:
        yield mesh


@pytest.fixture
def ask_fragile(fragile: Mesh) -> Iterator[Asker]:
    with httpx.Client(base_url=fragile.http_url, timeout=NET_SECONDS, trust_env=False) as http:
        yield Asker(http)


@pytest.mark.parametrize(
    ("thread", "application"), [("engine", "decoder"), ("forward", "vision"), ("event loop", "vision")]
)
def test_a_replica_whose_thread_hangs_is_replaced(
    fragile: Mesh, ask_fragile: Asker, faults: Path, thread: str, application: str
) -> None:
    replica = fragile.replica(application)
    (faults / thread).touch()
    started = time.monotonic()

    def is_gone() -> bool:
        with suppress(httpx.TimeoutException):  # an early request may be answered before the fault is there
            ask_fragile.http.post("/v1/chat/completions", json=body(fresh()), timeout=5)
        return not is_alive(replica)

    eventually(is_gone, "the replica ends")
    (faults / thread).unlink()
    eventually(lambda: ask_fragile.post(fresh()).status_code == 200, "there is another")
    print(f"{thread} of {application} hangs: {time.monotonic() - started:.1f} s until it answers again")


def test_without_ray_the_mesh_ends_and_says_so(fragile: Mesh) -> None:
    eventually(fragile.is_whole, "the mesh is whole")
    fault("Ray's raylet is killed").cause(fragile)
    assert fragile.process.wait(NET_SECONDS) == 1
    assert "start the mesh again" in fragile.log.read_text()


def fresh() -> object:
    """Return a picture that no cache has seen."""
    return screen_cases("open", "home", 1, seed=int.from_bytes(os.urandom(3)))[0].image


def body(image: object) -> dict[str, object]:
    return {"model": "autoglm-phone-9b", "messages": [{"role": "user", "content": [image]}], "max_tokens": 2}


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
