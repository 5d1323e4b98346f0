"""What `autoglm serve` makes of what answers at the port of its gateway."""

import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from autoglm.cli.processes import Signals
from autoglm.cli.serve import ServeOptions, Supervisor


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"],
)
def test_what_is_no_gateway_is_not_ready(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:

        def reply() -> None:
            line, _ = server.accept()
            with line:
                line.recv(65536)
                line.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        options = ServeOptions(Path(), "", "127.0.0.1", server.getsockname()[1], 0)
        assert not Supervisor(options, Signals(), stack)._is_ready()
        thread.join()
