"""What clients see at the end of a drain: every answer that does not finish ends with an error of the mesh's own."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest

from autoglm.v1.chat_pb2 import CompleteRequest, StreamCompleteRequest
from autoglm.v1.chat_pb2_grpc import ChatServiceStub

from ..asking import CHAT, describe_decoder
from ..mesh import Mesh, running_mesh
from ..waiting import NET_SECONDS, eventually
from .attacks.sending import grpc_outcome, http_outcome
from .clients import chat
from .neighbour import request

ENDLESS = "[a-z ]{20000}"  # an answer that takes longer than the drain on any machine
UNAVAILABLE = "upstream_unavailable"


@pytest.fixture
def draining(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh that gives running requests two seconds; the test stops it."""
    log = tmp_path_factory.mktemp("drain") / "serve.log"
    with running_mesh(log, "--modalities", "text", AUTOGLM_DRAIN_TIMEOUT="2") as running:
        yield running


def whole_over_http(mesh: Mesh) -> str:
    body = request(max_tokens=7000, structured_outputs={"regex": ENDLESS})
    response = httpx.post(mesh.http_url + CHAT, json=body, timeout=NET_SECONDS, trust_env=False)
    assert response.status_code == 503
    return http_outcome(response)


def stream_over_http(mesh: Mesh) -> str:
    body = request(stream=True, max_tokens=7000, structured_outputs={"regex": ENDLESS})
    response = httpx.post(mesh.http_url + CHAT, json=body, timeout=NET_SECONDS, trust_env=False)
    assert response.text.count("data: {") > 2  # it had begun
    return http_outcome(response)


def whole_over_grpc(mesh: Mesh) -> str:
    asked = CompleteRequest(chat=chat(max_tokens=7000, regex=ENDLESS))
    with grpc.insecure_channel(mesh.grpc_address) as channel, pytest.raises(grpc.RpcError) as raised:
        ChatServiceStub(channel).Complete(asked, timeout=NET_SECONDS)
    return grpc_outcome(raised.value)


def stream_over_grpc(mesh: Mesh) -> str:
    asked = StreamCompleteRequest(chat=chat(max_tokens=7000, regex=ENDLESS))
    with grpc.insecure_channel(mesh.grpc_address) as channel, pytest.raises(grpc.RpcError) as raised:
        list(ChatServiceStub(channel).StreamComplete(asked, timeout=NET_SECONDS))
    return grpc_outcome(raised.value)


RUNNING: tuple[Callable[[Mesh], str], ...] = (
    whole_over_http,
    stream_over_http,
    stream_over_http,
    whole_over_grpc,
    stream_over_grpc,
    stream_over_grpc,
)


def test_what_does_not_finish_or_comes_late_is_told(draining: Mesh) -> None:
    seen, ended = set[str](), threading.Event()

    def come() -> None:
        while not ended.is_set():
            try:
                seen.add(
                    http_outcome(httpx.post(draining.http_url + CHAT, json=request(max_tokens=2), trust_env=False))
                )
            except httpx.TransportError:
                seen.add("no connection")

    with ThreadPoolExecutor(len(RUNNING) + 1) as clients:
        ends = [clients.submit(run, draining) for run in RUNNING]
        eventually(lambda: describe_decoder(draining).num_requests_running == len(RUNNING), "all are answered")
        coming = clients.submit(come)
        try:
            assert draining.stop(signal.SIGTERM) == 0
        finally:
            ended.set()
        coming.result(NET_SECONDS)
        assert [end.result(NET_SECONDS) for end in ends] == [UNAVAILABLE] * len(RUNNING)
    assert seen <= {"ok", UNAVAILABLE, "no connection"}
