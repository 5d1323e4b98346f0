"""HTTP/1.1 as uvicorn speaks it, without offers to change to another protocol, and with our errors."""

import re

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.openai.errors import error_response

_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


class PlainHttpProtocol(HttpToolsProtocol):
    """Reads a request with an Upgrade header as if it had none, which HTTP allows.

    Java's HttpClient offers HTTP/2 with its first request to an http:// address. The parser would take the body of that
    request for HTTP/2, and the application would see an empty one.
    """

    _in_message = False

    def data_received(self, data: bytes) -> None:
        """Read what has arrived; clients send the head of a request in one piece."""
        if not self._in_message:
            head, end, rest = data.partition(b"\r\n\r\n")
            data = _UPGRADE.sub(b"", head) + end + rest
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that the parser cannot read; no request reaches the application."""
        answer = error_response(InvalidRequest("the bytes are not a valid HTTP/1.1 request"))
        fields = [*answer.raw_headers, (b"connection", b"close")]
        lines = [name + b": " + value + b"\r\n" for name, value in fields]
        self.transport.write(b"".join((STATUS_LINE[400], *lines, b"\r\n", answer.body)))
        self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_message = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """A request has arrived as a whole."""
        self._in_message = False
        super().on_message_complete()
