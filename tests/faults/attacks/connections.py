"""Connections that say too much, too little or nothing, before any key."""

import itertools
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

from .sending import (
    CHAT,
    CLOSED,
    CLOSED_OR_HELD,
    DATA,
    END_HEADERS,
    GLANCE,
    HEADERS,
    HELD,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Attack,
    Send,
    Servers,
    calling,
    connected,
    cut_off,
    frame,
    poured,
    request_headers,
)

COMPLETE = "ChatService/Complete"
HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n".encode()
BEGUN = b"HTTP/1.1 200"
OPENING = PREFACE + frame(SETTINGS, 0, 0)
KIB = 2**10


def over_grpc(frames: Callable[[], Iterator[bytes]]) -> Callable[[], Send]:
    """Send frames of HTTP/2 to the gRPC server, and read nothing meanwhile."""

    def send(servers: Servers) -> str:
        with connected(servers.grpc) as line:
            return poured(line, itertools.chain([OPENING], frames()))

    return lambda: send


def over_http(pieces: Callable[[], Iterator[bytes]]) -> Callable[[], Send]:
    """Send bytes to the HTTP server, and read nothing meanwhile."""

    def send(servers: Servers) -> str:
        with connected(servers.http) as line:
            return poured(line, pieces())

    return lambda: send


def pings() -> Iterator[bytes]:
    """100 000 pings."""
    return itertools.repeat(frame(PING, 0, 0, b"12345678") * 500, 200)


def settings() -> Iterator[bytes]:
    """100 000 settings, each of which is to be acknowledged."""
    return itertools.repeat(frame(SETTINGS, 0, 0) * 500, 200)


def streams_taken_back() -> Iterator[bytes]:
    """20 000 calls, each of them taken back at once."""
    head, why = request_headers(COMPLETE), struct.pack(">I", 8)
    for number in range(20_000):
        stream = 2 * number + 1
        yield frame(HEADERS, END_HEADERS, stream, head) + frame(RST_STREAM, 0, stream, why)


def halves_of_messages() -> Iterator[bytes]:
    """Calls that announce 30 MB and send 16 kB of them."""
    head, start = request_headers(COMPLETE), b"\0" + struct.pack(">I", 30_000_000)
    for number in range(100):
        stream = 2 * number + 1
        yield frame(HEADERS, END_HEADERS, stream, head) + frame(DATA, 0, stream, start + bytes(8000))
        yield frame(DATA, 0, stream, bytes(8000))


def endless_headers() -> Iterator[bytes]:
    """Headers of a call that do not end."""
    yield frame(HEADERS, 0, 1, request_headers(COMPLETE))
    yield from itertools.repeat(frame(9, 0, 1, b"\x00\x01x\x64" + b"v" * 100) * 100, 300)


def endless_header() -> Iterator[bytes]:
    """One header of HTTP/1.1 that does not end."""
    yield HEAD + b"x: "
    yield from itertools.repeat(b"a" * 64 * KIB, 500)


def many_headers() -> Iterator[bytes]:
    """Headers of HTTP/1.1 without an end."""
    yield HEAD
    yield from (b"".join(b"x-%d-%d: y\r\n" % (block, number) for number in range(1000)) for block in range(500))


def tiny_chunks() -> Iterator[bytes]:
    """A body in chunks of one byte."""
    yield HEAD + b"transfer-encoding: chunked\r\n\r\n"
    yield from itertools.repeat(b"1\r\n \r\n" * 1000, 500)


def requests_in_a_row() -> Iterator[bytes]:
    """10 000 requests on one connection, before any answer is read."""
    yield from itertools.repeat(b"GET /v1/none HTTP/1.1\r\nhost: test\r\n\r\n" * 100, 100)


def quiet(count: int, first: bytes) -> Callable[[], Send]:
    """So many connections that say `first` and then nothing."""

    def send(servers: Servers) -> str:
        with ExitStack() as stack:
            lines = [stack.enter_context(connected(servers.http)) for _ in range(count)]
            for line in lines:
                with suppress(OSError):  # those that are too many are cut off
                    line.sendall(first)
            return cut_off(lines[0])

    return lambda: send


def unread_streams(count: int, seconds: float) -> Send:
    """So many streams of which only the status is read, and which are left after so many seconds more."""
    body = json.dumps(
        {
            "model": "autoglm-phone-nano",
            "stream": True,
            "max_tokens": 2000,
            "messages": [{"role": "user", "content": "hi"}],
            "structured_outputs": {"regex": "[a-z ]{2000}"},
        }
    ).encode()

    def send(servers: Servers) -> str:
        with ExitStack() as stack:
            lines = [stack.enter_context(connected(servers.http)) for _ in range(count)]
            for line in lines:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
                line.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
            begun = {line.recv(len(BEGUN)) for line in lines}
            time.sleep(seconds)
            return HELD if begun == {BEGUN} else CLOSED

    return send


CONNECTIONS = (
    Attack("100 000 pings", over_grpc(pings), CLOSED_OR_HELD),
    Attack("100 000 settings of HTTP/2", over_grpc(settings), CLOSED_OR_HELD),
    Attack("20 000 calls taken back", over_grpc(streams_taken_back), CLOSED_OR_HELD),
    Attack("100 halves of messages", over_grpc(halves_of_messages), CLOSED_OR_HELD),
    Attack("headers of a call without an end", over_grpc(endless_headers), CLOSED_OR_HELD),
    Attack("a header without an end", over_http(endless_header), CLOSED_OR_HELD),
    Attack("headers without an end", over_http(many_headers), CLOSED_OR_HELD),
    Attack("chunks of one byte", over_http(tiny_chunks), CLOSED_OR_HELD),
    Attack("10 000 requests in a row", over_http(requests_in_a_row), CLOSED_OR_HELD),
    Attack("300 idle connections", quiet(300, b""), CLOSED_OR_HELD),
    Attack("300 halves of headers", quiet(300, HEAD), CLOSED_OR_HELD),
    Attack("100 halves of bodies", quiet(100, HEAD + b"content-length: 1000000\r\n\r\n{"), CLOSED_OR_HELD),
    Attack("8 streams that nobody reads", lambda: unread_streams(8, GLANCE), CLOSED_OR_HELD),
    Attack("8 streams left as they begin", lambda: unread_streams(8, 0), CLOSED_OR_HELD),
    Attack(
        "metadata of 1 MB",
        lambda: calling(COMPLETE, itertools.repeat(b""), ("x-long", "a" * 10**6)),
        frozenset({"untyped RESOURCE_EXHAUSTED", "untyped UNAVAILABLE", "untyped INTERNAL"}),  # gRPC's own refusal
    ),
)
