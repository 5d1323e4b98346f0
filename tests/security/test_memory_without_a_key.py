"""What somebody without a key can make the mesh hold: bounded memory, for a bounded time."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ..faults.attacks import connections
from ..faults.attacks.sending import (
    CLOSED,
    DATA,
    END_HEADERS,
    HEADERS,
    PREFACE,
    connected,
    cut_off,
    frame,
    poured,
    request_headers,
)
from ..mesh import Mesh, running_mesh
from ..waiting import NET_SECONDS, eventually

MIB = 2**20
GROWTH = 100 * MIB  # of all processes; what is sent would be several times as much
FROM_ONE_ADDRESS = 250  # the default of max_connections_per_address
PATIENCE = 120.0  # seconds in which a connection that says nothing useful is closed


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh that wants a key, which nobody here has."""
    log = tmp_path_factory.mktemp("locked") / "serve.log"
    with running_mesh(log, AUTOGLM_API_KEYS="nobody-here-knows") as running:
        yield running


def held(mesh: Mesh) -> int:
    """Return the bytes that the processes hold which clients can reach, once what came before has been dealt with."""
    with grpc.insecure_channel(mesh.grpc_address) as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=NET_SECONDS)
    proxy = mesh.grpc_proxy()
    return sum(process.memory_info().rss for process in (mesh.gateway(), proxy, *proxy.children()))


FRAMES = {
    "pings": connections.pings,
    "settings": connections.settings,
    "calls taken back": connections.streams_taken_back,
    "halves of messages": connections.halves_of_messages,
    "endless headers": connections.endless_headers,
}
PIECES = {
    "an endless header": connections.endless_header,
    "headers without an end": connections.many_headers,
    "tiny chunks": connections.tiny_chunks,
    "requests in a row": connections.requests_in_a_row,
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_that_nobody_answers_are_not_kept(locked: Mesh, name: str) -> None:
    before = held(locked)
    with ExitStack() as stack:
        for _ in range(4):
            line = stack.enter_context(connected(("127.0.0.1", locked.grpc_port)))
            poured(line, iter((connections.OPENING, *FRAMES[name]())))
        assert held(locked) - before < GROWTH
    eventually(lambda: held(locked) - before < GROWTH, "what was held is given back")


def test_headers_that_never_end_cost_nothing(locked: Mesh) -> None:
    before = held(locked)
    with ExitStack() as stack:
        for _ in range(32):
            line = stack.enter_context(connected(("127.0.0.1", locked.grpc_port)))
            assert poured(line, iter((connections.OPENING, *connections.endless_headers())), PATIENCE) == CLOSED
        assert held(locked) - before < GROWTH / 4


def test_connections_of_one_address_are_bounded_over_grpc(locked: Mesh) -> None:
    address = ("127.0.0.1", locked.grpc_port)
    with ExitStack() as stack:
        lines = [stack.enter_context(connected(address)) for _ in range(FROM_ONE_ADDRESS)]
        for line in lines:
            line.sendall(connections.OPENING)
            assert line.recv(1)
        with suppress(ConnectionError), connected(address) as line:
            assert cut_off(line, PATIENCE) == CLOSED
        held(locked)  # others, of another address, are served


@pytest.mark.parametrize("name", PIECES)
def test_a_request_without_an_end_is_not_kept(locked: Mesh, name: str) -> None:
    before = held(locked)
    with ExitStack() as stack:
        for _ in range(4):
            poured(stack.enter_context(connected(("127.0.0.1", locked.http_port))), PIECES[name]())
        assert held(locked) - before < GROWTH


def test_a_header_without_an_end_is_cut_off(locked: Mesh) -> None:
    with connected(("127.0.0.1", locked.http_port)) as line:
        assert poured(line, connections.endless_header(), PATIENCE) == CLOSED


def test_halves_of_messages_count_before_the_key(locked: Mesh) -> None:
    start = b"\0" + (30 * MIB).to_bytes(4, "big")
    before = held(locked)
    with ExitStack() as stack:
        for _ in range(40):
            line = stack.enter_context(connected(("127.0.0.1", locked.grpc_port)))
            poured(line, iter((connections.OPENING, *halves(start))))
        assert held(locked) - before < GROWTH


def halves(start: bytes) -> Iterator[bytes]:
    """As much of 100 messages as a server lets come before it has read anything."""
    head = request_headers("ChatService/Complete")
    for stream in range(1, 200, 2):
        yield frame(HEADERS, END_HEADERS, stream, head) + frame(DATA, 0, stream, start + bytes(16000))
        yield from (frame(DATA, 0, stream, bytes(16000)) for _ in range(3))


QUIET = {
    "nothing": b"",
    "half a line": b"GET /health",
    "half of the headers": b"GET /health/live HTTP/1.1\r\nhost: a\r\nx: ",
    "half of a body": connections.HEAD + b"content-length: 1000\r\n\r\n{",
}


@pytest.mark.parametrize("said", QUIET)
def test_a_connection_that_goes_silent_is_closed(locked: Mesh, said: str) -> None:
    with connected(("127.0.0.1", locked.http_port)) as line:
        line.sendall(QUIET[said])
        assert cut_off(line, PATIENCE) == CLOSED


@pytest.mark.parametrize("said", [b"", b"PRI * HTTP/2.0\r\n\r\n", PREFACE])
def test_so_is_one_of_grpc_that_calls_nothing(locked: Mesh, said: bytes) -> None:
    with connected(("127.0.0.1", locked.grpc_port)) as line:
        line.sendall(said)
        assert cut_off(line, PATIENCE) == CLOSED
