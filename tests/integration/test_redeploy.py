"""The applications are deployed again with other settings while clients ask: no request fails."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import grpc

from autoglm.common.services import SERVICES

from ..asking import Asker
from ..cases import screen_cases
from ..mesh import Mesh
from ..redeploy import redeploy
from ..waiting import NET_SECONDS, at_the_same_time, eventually


@contextmanager
def asking(ask: Callable[[], str]) -> Iterator[list[str]]:
    """Ask again and again inside the block, and list what came."""
    seen = list[str]()

    def work(ended: threading.Event) -> None:
        while not ended.is_set():
            seen.append(ask())

    with at_the_same_time(work):
        yield seen


def test_a_config_is_deployed_again_and_no_request_fails(mesh: Mesh, ask: Asker) -> None:
    before = {name: mesh.replica(name).pid for name in SERVICES}
    metadata = {name: mesh.to(name) for name in SERVICES}
    cases = (screen_cases("open", "home", 1, seed=seed)[0] for seed in itertools.count(500))

    def question() -> str:
        case = next(cases)  # its media are in no cache
        response = ask.post(case.image, case.audio, case.words)
        return "OK" if response.status_code == 200 else response.text

    def describe(name: str) -> str:
        service = SERVICES[name]
        try:
            service.stub(channel).Describe(service.describe(), metadata=metadata[name], timeout=NET_SECONDS)
        except grpc.RpcError as error:
            return f"{name}: {error.code()} {error.details()}"
        return "OK"

    def all_are_new() -> bool:
        running = {name: [process.pid for process in mesh.replicas(name)] for name in SERVICES}
        return all(pids and before[name] not in pids for name, pids in running.items())

    with grpc.insecure_channel(mesh.serve_address) as channel, ExitStack() as stack:
        asked = [stack.enter_context(asking(question))]
        # At the services' own door, where nobody asks again.
        asked += [stack.enter_context(asking(partial(describe, name))) for name in SERVICES]
        redeploy(mesh, {name: {"args": {"max_queued_requests": 65}} for name in SERVICES})
        eventually(all_are_new, "every replica is a new one")
    assert [{*answers} for answers in asked] == [{"OK"}] * 4
