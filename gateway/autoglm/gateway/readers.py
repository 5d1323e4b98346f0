"""Where a body is read, so that others need not wait for it: a small one at once, a larger one in a thread, and a large
one in a process of its own.

What reads JSON locks the interpreter until it is done, for about 1.4 ms with each megabyte. So the others' tokens wait,
in whichever thread it runs. See docs/adr/0016.
"""

import asyncio
import logging
import os
import pickle
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from autoglm.common import side_process
from autoglm.common.errors import RequestTooLarge, UpstreamUnavailable
from autoglm.gateway import reader_process
from autoglm.gateway.json_bounds import may_have_more_values
from autoglm.gateway.tasks import OFF_LOOP_BYTES

T = TypeVar("T")

MAX_READERS = 2  # at a time, each with the memory of reader_process
IN_THREAD_BYTES = 3 * 2**20  # a screenshot of 2 MB in base64, which takes 4 ms
IN_THREAD_VALUES = 4096  # about as long, as messages or parts
SETTINGS = "AUTOGLM_"  # which has keys and tokens, and is not for what reads hostile bodies
logger = logging.getLogger("autoglm.gateway")


class NotBegun(Exception):
    """The process that forks has ended."""


class ReaderPool:
    """Reads bodies; the process for large ones starts with `start` or the first of them, and again when it ended."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(MAX_READERS)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; it takes about a second until it reads."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
        command = [sys.executable, "-m", reader_process.__name__]
        process, self._control = side_process.start(command, socket.SOCK_SEQPACKET, environment)
        self._process, self._end = process, weakref.finalize(self, side_process.end, process, self._control)

    def close(self) -> None:
        """End the process and its children."""
        if self._process is not None:
            self._end()

    @property
    def pid(self) -> int | None:
        """The process that forks, None before it has started."""
        return None if self._process is None else self._process.pid

    async def read(self, body: bytes | bytearray, work: Callable[[bytes | bytearray], T], is_json: bool = True) -> T:
        """Return what `work`, a function of a module or a partial of one, makes of `body`; raises what it raises.
        JSON of many values counts as large.

        Raises RequestTooLarge for a body that takes too much memory or CPU time. A cancellation ends the process that
        reads the body.
        """
        if len(body) <= OFF_LOOP_BYTES:
            return work(body)
        if len(body) <= IN_THREAD_BYTES and not (is_json and may_have_more_values(body, IN_THREAD_VALUES)):
            return await asyncio.to_thread(work, body)
        async with self._turns:
            for _ in range(2):
                if self._process is None:
                    self.start()
                process = self._process
                try:
                    return await self._in_process(body, work)
                except NotBegun:
                    self._restart(process)
        raise UpstreamUnavailable("large requests cannot be read at the moment; try again")

    async def _in_process(self, body: bytes | bytearray, work: Callable[[bytes | bytearray], T]) -> T:
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        exchange = asyncio.ensure_future(asyncio.to_thread(_exchange, self._control, ours, theirs, body, work))
        try:
            done, outcome = await asyncio.shield(exchange)
        except asyncio.CancelledError:
            with suppress(OSError):  # the thread may have closed it
                ours.shutdown(socket.SHUT_RDWR)  # which ends the child, and so the thread
            exchange.add_done_callback(_forget)
            raise
        if not done:
            raise outcome
        result: T = outcome
        return result

    def _restart(self, process: "subprocess.Popen[bytes] | None") -> None:
        """Start the process again, unless that is done."""
        if self._process is process:
            logger.warning("the process that reads large requests has ended, starting it again")
            self.close()
            self.start()


def _exchange(
    control: socket.socket, ours: socket.socket, theirs: socket.socket, body: bytes | bytearray, work: object
) -> tuple[bool, Any]:
    """Have a child do `work`, and return whether it could and its result or else its error; raises NotBegun or
    RequestTooLarge if it dies. In a thread; everything large is copied without the interpreter's lock."""
    with ours, open(os.memfd_create("request", os.MFD_CLOEXEC), "r+b", buffering=0) as file:
        with theirs:
            reader_process.write(file, body)
            ours.send(pickle.dumps(work))
            try:
                socket.send_fds(control, [b"."], [theirs.fileno(), file.fileno()])
            except OSError:
                raise NotBegun from None
        if _said(ours, len(reader_process.BEGUN)) == b"":
            raise NotBegun
        reply = _said(ours, reader_process.REPLY.size)
        if not reply:
            raise RequestTooLarge("the body takes too much memory or time to read; send less, or a simpler one")
        start, end = reader_process.REPLY.unpack(reply)
        outcome: tuple[bool, Any] = reader_process.OutcomeUnpickler(reader_process.read(file, start, end), file).load()
        return outcome


def _forget(exchange: asyncio.Future[tuple[bool, Any]]) -> None:
    """Take the error of an exchange that nobody waits for any more."""
    if not exchange.cancelled():
        exchange.exception()


def _said(ours: socket.socket, size: int) -> bytes:
    """Return the next message of a child, nothing if it has died."""
    try:
        return ours.recv(size)
    except ConnectionError:
        return b""
