"""How hostile clients send, and what each of them learns, in a word.

The word is `ok`, the type of the error (docs/errors.md), `untyped …` for an error that is not one of the mesh's,
`closed` when the server ends the connection without a word, and `held` when it takes everything and waits for more.
"""

import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self, cast
from urllib.parse import urlsplit

import grpc
import httpx
from google.rpc import error_details_pb2
from grpc_status import rpc_status

CHAT = "/v1/chat/completions"
JSON = "application/json"
OK, CLOSED, HELD, LATE = "ok", "closed", "held", "no answer"
REFUSED = frozenset({"invalid_request_error"})
TOO_LARGE = REFUSED | {"request_too_large"}
CLOSED_OR_HELD = frozenset({CLOSED, HELD})
SOURCE = "127.0.0.2"  # other clients have other addresses, as anywhere else
PATIENCE = 120.0  # seconds that a hostile client waits for its answer; then it has found a hang
GLANCE = 1.0  # seconds that it waits to see whether it is cut off


@dataclass(frozen=True, slots=True)
class Servers:
    """The two servers of a gateway."""

    http: tuple[str, int]
    grpc: tuple[str, int]

    @classmethod
    def of(cls, http_url: str, grpc_address: str) -> Self:
        """Read `http://host:port` and `host:port`."""
        web, calls = urlsplit(http_url), urlsplit(f"//{grpc_address}")
        return cls((web.hostname or "", web.port or 80), (calls.hostname or "", calls.port or 0))


Send = Callable[[Servers], str]


@dataclass(frozen=True, slots=True)
class Attack:
    """A kind of hostile or heavy request.

    `make` returns what sends it once, so that the time of making it is not the time of sending it;
    `outcomes` is what
    its client may learn.
    """

    name: str
    make: Callable[[], Send]
    outcomes: frozenset[str]


def posting(path: str, body: bytes, **headers: str) -> Send:
    """Send a body over HTTP."""
    named = {"content-type": JSON} | {name.replace("_", "-"): value for name, value in headers.items()}

    def send(servers: Servers) -> str:
        host, port = servers.http
        try:
            with httpx.Client(transport=httpx.HTTPTransport(local_address=SOURCE), timeout=PATIENCE) as http:
                response = http.post(f"http://{host}:{port}{path}", content=body, headers=named)
        except httpx.TimeoutException:
            return LATE
        except httpx.TransportError:
            return CLOSED
        return http_outcome(response)

    return send


def http_outcome(response: httpx.Response) -> str:
    """Return what a response over HTTP says, an error in a stream included."""
    if response.status_code == 200:
        _, failed, event = response.text.partition("event: error\ndata: ")
        return str(json.loads(event)["error"]["type"]) if failed else OK
    try:
        return str(response.json()["error"]["type"])
    except (ValueError, KeyError, TypeError):
        return f"untyped {response.status_code}"


def asking(**fields: Any) -> Send:
    """Send a chat request with these fields; a list of messages stands for the greeting."""
    return posting(CHAT, chat_body(**fields))


def chat_body(**fields: Any) -> bytes:
    """Return the body of a chat request."""
    hi = {"model": "autoglm-phone-9b", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
    return json.dumps(hi | fields).encode()


def user(*content: Any) -> list[dict[str, Any]]:
    """Return the messages of a request that says only `content`."""
    return [{"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}]


def calling(method: str, messages: Iterator[bytes], *metadata: tuple[str, str]) -> Send:
    """Send the next of `messages` over gRPC, as a unary call of `method`."""

    def send(servers: Servers) -> str:
        with grpc.insecure_channel("{}:{}".format(*servers.grpc)) as channel:
            call = channel.unary_unary(f"/autoglm.v1.{method}", bytes, bytes)
            try:
                call(next(messages), timeout=PATIENCE, metadata=metadata)
            except grpc.RpcError as error:
                return grpc_outcome(error)
        return OK

    return send


def grpc_outcome(error: grpc.RpcError) -> str:
    """Return what an error of gRPC says."""
    call = cast(grpc.Call, error)
    status, info = rpc_status.from_call(call), error_details_pb2.ErrorInfo()
    if status is not None and any(detail.Unpack(info) for detail in status.details):
        return str(info.reason).lower()
    return LATE if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED else f"untyped {call.code().name}"


@contextmanager
def connected(address: tuple[str, int]) -> Iterator[socket.socket]:
    """A connection of bytes, which waits for a peer no longer than PATIENCE."""
    with socket.create_connection(address, PATIENCE, (SOURCE, 0)) as line:
        yield line


def poured(line: socket.socket, pieces: Iterator[bytes], patience: float = GLANCE) -> str:
    """Send all pieces without reading; return whether the server went on taking them."""
    line.settimeout(patience)
    try:
        for piece in pieces:
            line.sendall(piece)
    except TimeoutError:
        return HELD
    except OSError:
        return CLOSED
    return cut_off(line, patience)


def cut_off(line: socket.socket, patience: float = GLANCE) -> str:
    """Read what the server says; return whether it ends the connection."""
    line.settimeout(patience)
    with suppress(TimeoutError):
        try:
            while line.recv(65536):
                pass
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
        return CLOSED
    return HELD


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9  # RFC 9113
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def fields(*pairs: tuple[str, str]) -> bytes:
    """Return headers in HPACK, each a literal that is not indexed; names and values of less than 127 bytes."""
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in pairs)


def _text(text: str) -> bytes:
    data = text.encode()
    return bytes((len(data),)) + data


def request_headers(method: str) -> bytes:
    """Return the headers of a call of gRPC."""
    return fields(
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/autoglm.v1.{method}"),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
