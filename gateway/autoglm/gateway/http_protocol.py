"""HTTP/1.1 as uvicorn speaks it, without offers to change to another protocol, with our errors, and with bounds on what
a connection costs before any key is checked: bytes and seconds of a header, the speed of a body, requests in advance.

A body in tiny chunks makes thousands of pieces of what arrives at once. So that other connections get their turns, the
rest waits for the next turn of the event loop, and meanwhile the connection is not read.
"""

import asyncio
import re

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from autoglm.common.errors import DeadlineExceeded, InvalidRequest, MeshError, RateLimited, RequestTooLarge
from autoglm.gateway.backend import Backend
from autoglm.gateway.connections import ConnectionLimit
from autoglm.gateway.context import Tenant
from autoglm.gateway.metrics import OTHER
from autoglm.gateway.openai.errors import error_response

MAX_HEADER_BYTES = 64 * 1024  # of a request's line and header, and of anything between two pieces of its body
FIELD_BYTES = 32  # that each field costs beside its name and value, as HTTP/2 counts them
MAX_PIPELINED = 16  # requests that a client may send ahead of their answers
RECEIVE_SECONDS = 30.0  # for a whole header; a body has to bring its least bytes in each such period
MIN_BODY_RATE = 500  # bytes per second
STALLED_SECONDS = 60.0  # for a client to take more of its answer once the buffers are full
LINGER_SECONDS = 1.0  # after a refusal, for its client to read it
PARSED_BYTES = 8 * 1024  # that are parsed in one go
TURN_EVENTS = 512  # pieces of bodies and the like in one turn of the event loop, about a millisecond of work

_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


class PlainHttpProtocol(HttpToolsProtocol):
    """Reads a request with an Upgrade header as if it had none, which HTTP allows.

    Java's HttpClient offers HTTP/2 with its first request to an http:// address. The parser would take the body of that
    request for HTTP/2, and the application would see an empty one.
    """

    backend: Backend
    limit: ConnectionLimit

    _in_message = False
    _in_body = False
    _refusal: MeshError | None = None
    _fields = 0  # bytes of the request's line, header and trailers, so far
    _between = 0  # bytes since the last piece of a body or the last message
    _received = 0  # bytes since the receive timer was started
    _unparsed = b""  # what has arrived and waits for a turn
    _events = 0  # in this turn
    _answering: RequestResponseCycle | None = None  # with pipelining, an earlier request than the last
    _receive_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        if self.limit.open(self._host):
            self._watch()
        else:
            self.backend.metrics.rejected(Tenant(), "connections")
            self._refuse(RateLimited("too many connections are open; close some or try again shortly"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self.limit.close(self._host)
        self._unwatch()
        self.resume_writing()
        self._unparsed = b""
        self._give_up_answer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what has arrived; clients send the head of a request in one piece."""
        if self._refusal is not None:
            return
        self._unset_keepalive_if_required()
        self._received += len(data)
        if not (self._in_message or self._unparsed):
            head, end, rest = data.partition(b"\r\n\r\n")
            data = _UPGRADE.sub(b"", head) + end + rest
        waits, self._unparsed = bool(self._unparsed), self._unparsed + data
        if waits:
            self.transport.pause_reading()  # the application has resumed it
        else:
            self._parse()

    def _parse(self) -> None:
        """Parse what has arrived, as far as one turn of the event loop allows."""
        self._events, done = 0, 0
        while done < len(self._unparsed) and self._events < TURN_EVENTS and self._refusal is None:
            self._parse_piece(self._unparsed[done : done + PARSED_BYTES])
            done += PARSED_BYTES
        self._unparsed = b"" if self._refusal else self._unparsed[done:]
        if self._unparsed:
            self.transport.pause_reading()
            self.loop.call_soon(self._parse_rest)
        if self._in_message or self._is_idle:
            self._watch()
        else:
            self._unwatch()

    def _parse_rest(self) -> None:
        self._parse()
        if not (self._unparsed or self.flow.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def _parse_piece(self, data: bytes) -> None:
        self._between += len(data)
        try:
            self.parser.feed_data(data)
            self._check_header(self._between)
        except httptools.HttpParserUpgrade:  # CONNECT, which no route allows
            pass
        except httptools.HttpParserError as error:
            known = error.__context__
            self._refuse(known if isinstance(known, MeshError) else _invalid())
        except MeshError as error:
            self._refuse(error)

    def on_message_begin(self) -> None:
        """A request begins."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise RateLimited(f"more than {MAX_PIPELINED} requests wait on this connection; read their answers first")
        self._in_message, self._in_body, self._fields = True, False, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target has arrived."""
        self._fields += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or after the body a trailer, has arrived."""
        self._fields += len(name) + len(value) + FIELD_BYTES
        self._check_header(self._fields)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The body begins."""
        self._check_header(self._fields)
        self._in_body = True
        self._unwatch()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body has arrived."""
        self._between = 0
        self._events += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has arrived as a whole."""
        self._in_message, self._between = False, 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._write_timer = self._write_timer or self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has caught up, or is gone."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    @property
    def _host(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if self._receive_timer is None and not self.transport.is_closing():
            self._received = 0
            self._receive_timer = self.loop.call_later(RECEIVE_SECONDS, self._check_progress)

    def _unwatch(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _check_progress(self) -> None:
        """Cut off a client that sends too slowly, unless it is us who do not read."""
        self._receive_timer = None
        enough = self._in_message and self._in_body and self._received >= MIN_BODY_RATE * RECEIVE_SECONDS
        if self.flow.read_paused or enough:
            self._watch()
        elif self._in_message:
            self._refuse(DeadlineExceeded("the request arrives too slowly; send it again over a faster connection"))
        else:
            self.transport.abort()

    def _check_header(self, size: int) -> None:
        if size > MAX_HEADER_BYTES:
            raise RequestTooLarge(f"the request's header is larger than {MAX_HEADER_BYTES} bytes")

    def _refuse(self, error: MeshError) -> None:
        """Answer what does not reach the application, and close the connection."""
        self._refusal = self.backend.failed(error)
        if self._is_idle:  # otherwise the request that is given up is counted
            self.backend.metrics.answered("http", OTHER, str(error.http_status))
        self._unwatch()
        if self._take_over():
            answer = error_response(error)
            fields = [*answer.raw_headers, (b"connection", b"close")]
            lines = [name + b": " + value + b"\r\n" for name, value in fields]
            self.transport.write(b"".join((STATUS_LINE[error.http_status], *lines, b"\r\n", answer.body)))
            if self.transport.can_write_eof():
                self.transport.write_eof()
            # Closing with bytes unread would reset the connection, and the client might not see the answer.
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)
        else:
            self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _take_over(self) -> bool:
        """Return whether nobody answers the client at the moment; what is still being read is given up."""
        if self._is_idle:
            return True
        if self._answering is not None and self._answering.response_started:
            return False
        self._give_up_answer()
        return True

    def _give_up_answer(self) -> None:
        self.pipeline.clear()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()


def _invalid() -> MeshError:
    return InvalidRequest("the bytes are not a valid HTTP/1.1 request")


def http_protocol(backend: Backend) -> type[PlainHttpProtocol]:
    """Return the protocol of one server."""

    class Protocol(PlainHttpProtocol):
        pass

    Protocol.backend, Protocol.limit = backend, ConnectionLimit(backend.settings)
    return Protocol
