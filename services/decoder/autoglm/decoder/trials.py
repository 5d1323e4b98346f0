"""Reads and tries formats where they can do no harm; see trial_process."""

import json
import logging
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from autoglm.common import side_process
from autoglm.common.errors import DeadlineExceeded, InternalError, InvalidRequest, RateLimited, UpstreamUnavailable
from autoglm.decoder import trial_process
from autoglm.decoder.engine.request import GrammarSpec
from autoglm.decoder.format_spec import TOO_COMPLEX, format_param
from autoglm.decoder.tool_functions import Marks
from autoglm.v1.decoder_pb2 import DecoderServiceGenerateRequest

MAX_TRIALS = 4  # at a time, each with the memory of trial_process
QUEUE_SECONDS = 10.0  # that a trial may wait for its turn
REPLY_SECONDS = trial_process.SECONDS + 2.0  # the kernel has ended the child by then
logger = logging.getLogger("autoglm.decoder")


class Trials:
    """Reads and tries formats for one tokenizer in a process of its own, which is started again when it has ended."""

    def __init__(self, tokenizer: Path, stops: Sequence[int], marks: Marks) -> None:
        module = ["-m", trial_process.__name__]
        self._command = [sys.executable, *module, str(tokenizer), *marks, *(str(stop) for stop in stops)]
        self._turns, self._starting = threading.Semaphore(MAX_TRIALS), threading.Lock()
        self._start()

    def read(self, message: DecoderServiceGenerateRequest, until: float = float("inf")) -> GrammarSpec:
        """Return what the answer to a request with a format has to match: a grammar that can be compiled within the
        limits of trial_process and before `until` on the monotonic clock.

        Raises InvalidRequest for what is no grammar or takes too much, RateLimited when too many are being tried or
        there is hardly any CPU time for it, and DeadlineExceeded.
        """
        if not self._turns.acquire(timeout=min(QUEUE_SECONDS, max(0.0, until - time.monotonic()))):
            raise RateLimited("too many new formats are being compiled; try again")
        started = time.monotonic()
        try:
            reply = self._try(message.SerializeToString(), until)
        finally:
            self._turns.release()
        if reply == trial_process.BEGUN:
            param = format_param(message)
            if time.monotonic() - started >= trial_process.SECONDS:  # and not the CPU time that a format may take
                raise RateLimited("the decoder is too busy to compile this format; try again", param=param)
            raise InvalidRequest(TOO_COMPLEX, param=param)
        return _outcome(json.loads(reply.removeprefix(trial_process.BEGUN)))

    @property
    def pid(self) -> int:
        """The process that forks."""
        return self._process.pid

    def _start(self) -> None:
        process, self._control = side_process.start(self._command)
        self._process, self._end = process, weakref.finalize(self, side_process.end, process, self._control)

    def _try(self, request: bytes, until: float) -> bytes:
        """Return what the child says; nothing after BEGUN if it died. Raises UpstreamUnavailable if there is none."""
        for _ in range(2):
            process = self._process
            with self._trial() as trial, suppress(ConnectionError):
                trial.sendall(request)
                trial.shutdown(socket.SHUT_WR)
                if reply := _read(trial, min(until, time.monotonic() + REPLY_SECONDS)):
                    return reply
            self._restart(process)
        raise UpstreamUnavailable("formats cannot be checked at the moment; try again")

    def _trial(self) -> socket.socket:
        """Return the socket of a new trial, which nobody answers if the process has ended."""
        ours, theirs = socket.socketpair()
        with theirs, suppress(ConnectionError):
            socket.send_fds(self._control, [b"."], [theirs.fileno()])
        return ours

    def _restart(self, process: "subprocess.Popen[bytes]") -> None:
        """Start the process again, unless another thread has."""
        with self._starting:
            if self._process is process:
                logger.warning("the process that tries formats has ended, starting it again")
                self._end()
                self._start()


def _outcome(told: dict[str, Any]) -> GrammarSpec:
    """Return the format that a child tells of, or raise the error."""
    if "failed" in told:
        logger.error("a format could not be read: %s", told["failed"])
        raise InternalError("the format of this request could not be read")
    if "refused" in told:
        raise InvalidRequest(told["refused"], param=told["param"])
    given = told["given"]
    return GrammarSpec(told["kind"], given if isinstance(given, str) else tuple(given), told["param"])


def _read(trial: socket.socket, until: float) -> bytes:
    """Return all that comes; raises DeadlineExceeded when nothing more has come by `until`."""
    parts = list[bytes]()
    while (left := until - time.monotonic()) > 0:
        trial.settimeout(left)
        try:
            part = trial.recv(2**16)
        except TimeoutError:
            break
        if not part:
            return b"".join(parts)
        parts.append(part)
    raise DeadlineExceeded("the deadline passed before the format was compiled; allow more time")
