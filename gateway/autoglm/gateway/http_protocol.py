"""HTTP/1.1 as uvicorn speaks it, without offers to change to another protocol."""

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_message = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """A request has arrived as a whole."""
        self._in_message = False
        super().on_message_complete()
