"""Applications are deployed again with other settings while clients ask: no request fails."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest

from autoglm.common.services import SERVICES

from ..asking import Asker
from ..cases import screen_cases
from ..mesh import Mesh
from ..redeploy import redeploy
from ..waiting import NET_SECONDS


@contextmanager
def asking(ask: Callable[[], str]) -> Iterator[list[str]]:
    """Ask again and again inside the block, and list what came."""
    ended, seen = threading.Event(), list[str]()

    def work() -> None:
        while not ended.is_set():
            seen.append(ask())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("application", ["vision", "speech", "decoder"])
def test_an_application_is_deployed_again_and_no_request_fails(mesh: Mesh, ask: Asker, application: str) -> None:
    before, metadata = mesh.replica(application), mesh.to(application)
    cases = (screen_cases("open", "home", 1, seed=seed)[0] for seed in itertools.count(500))

    def question() -> str:
        if application == "decoder":
            response = ask.post("你是谁?")
        else:
            case = next(cases)  # its media are in no cache
            response = ask.post(case.image if application == "vision" else case.audio)
        return "OK" if response.status_code == 200 else response.text

    def describe() -> str:
        service = SERVICES[application]
        try:
            service.stub(channel).Describe(service.describe(), metadata=metadata, timeout=NET_SECONDS)
        except grpc.RpcError as error:
            return f"{error.code()} {error.details()}"
        return "OK"

    with (
        grpc.insecure_channel(mesh.serve_address) as channel,
        asking(question) as answers,
        asking(describe) as described,  # at the services' own door, where nothing is sent again
        redeploy(mesh, application) as deploying,
    ):
        assert deploying.wait(NET_SECONDS) == 0
    after = mesh.replica(application)
    assert after.pid != before.pid
    assert set(answers) == set(described) == {"OK"}
