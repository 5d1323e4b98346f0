"""A TCP relay: it counts the pings that go over it, and loses connections that nobody closes."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HOST = "127.0.0.1"
PREFACE_BYTES, HEADER_BYTES, PING, ACK = 24, 9, 6, 1  # of HTTP/2, RFC 9113


class Relay:
    """Passes on what clients send to a port of this machine, and what comes back."""

    def __init__(self, port: int) -> None:
        self._port, self._lost = port, threading.Event()
        self._listener = socket.create_server((HOST, 0))
        self._sockets = [self._listener]
        self.address = f"{HOST}:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.pings = threading.Semaphore(0)  # one for each that a client sent of its own accord

    def lose(self) -> None:
        """Let nothing more through on the connections that there are, which stay open; new ones are not touched."""
        self._lost.set()
        self._lost = threading.Event()

    def run(self) -> None:
        """Take connections until `close`."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((HOST, self._port))
                self._sockets += [client, server]
                self.connections += 1
                threading.Thread(target=self._pass, args=(client, server, self._lost, Frames(self.pings))).start()
                threading.Thread(target=self._pass, args=(server, client, self._lost, None)).start()

    def close(self) -> None:
        """Close every connection."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _pass(self, source: socket.socket, to: socket.socket, lost: threading.Event, frames: "Frames | None") -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not lost.is_set():
                    to.sendall(data)
                    if frames is not None:
                        frames.read(data)
            to.shutdown(socket.SHUT_WR)


class Frames:
    """Reads what a client of HTTP/2 sends, for its pings."""

    def __init__(self, pings: threading.Semaphore) -> None:
        self._pings, self._skip, self._rest = pings, PREFACE_BYTES, b""

    def read(self, data: bytes) -> None:
        """Take the next bytes of the connection, split anywhere."""
        self._rest += data
        while len(self._rest) >= self._skip + HEADER_BYTES:
            header = self._rest[self._skip : self._skip + HEADER_BYTES]
            if header[3] == PING and header[4] != ACK:
                self._pings.release()
            self._rest = self._rest[self._skip + HEADER_BYTES :]
            self._skip = int.from_bytes(header[:3], "big")


@contextmanager
def relaying(port: int) -> Iterator[Relay]:
    """Run a relay before `port`."""
    relay = Relay(port)
    threading.Thread(target=relay.run).start()
    try:
        yield relay
    finally:
        relay.close()
