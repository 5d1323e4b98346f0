"""The process in which the formats of requests are read and tried before the decoder compiles them.

It forks a child for each. Reading is work in Python too, which in the decoder's own process would take turns with the
engine's.

A child has a limit of CPU time, of time, of memory and of stack. When llguidance crashes or does not end, only the
child dies. The process itself only forks: it has one thread, the tokenizer, and no torch, so a fork is cheap and safe.
One child is always ready for the next trial: a fork, and the pages that a child writes to first, take twice as long as
a common format. The process ends with the decoder, whose end of its socket closes even when the decoder is killed, and
ends its children.

    python -m autoglm.decoder.trial_process TOKENIZER OPEN CLOSE STOP…

OPEN and CLOSE are the marks around a function call, STOP the tokens that end an answer. A socket on stdin brings one
socket for each trial. What comes over that is a DecoderServiceGenerateRequest, up to the end of file; back go BEGUN and
then the format, or why it is refused, in JSON, or nothing more if the child dies.
"""

import json
import os
import resource
import signal
import socket
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llguidance import LLTokenizer

from autoglm.common.errors import InvalidRequest
from autoglm.common.priority import give_way
from autoglm.decoder.engine.deep_stack import STACK, with_stack
from autoglm.decoder.engine.masks import MASK_SECONDS
from autoglm.decoder.engine.matchers import begin, matcher_of, spelling
from autoglm.decoder.engine.request import GrammarSpec
from autoglm.decoder.format_spec import TOO_COMPLEX, format_spec
from autoglm.decoder.tool_functions import Marks
from autoglm.v1.decoder_pb2 import DecoderServiceGenerateRequest
from autoglm.v1.generation_pb2 import SamplingParams

CPU_SECONDS = 3.0  # for each attempt to compile; llguidance needs 0.7 s for a schema with OpenAI's 5000 properties
FORMAT_SECONDS = 10.0  # for all that is tried until a format can be enforced
SECONDS = 15.0  # of a child that hardly gets a CPU
MEMORY = 256 * 2**20  # bytes, above the tokenizer's: that schema takes 28 MiB
BEGUN = b"+"
_COMMON = DecoderServiceGenerateRequest(sampling=SamplingParams(json_schema="{}")).SerializeToString()


def main(tokenizer: Path, marks: Marks, stops: list[int]) -> None:
    """Keep a child ready for the next socket that comes in, until the decoder ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for children
    give_way()
    trial, control = _Trial(spelling(tokenizer, stops), marks), socket.socket(fileno=sys.stdin.fileno())
    while _has_taken(trial, control):
        pass
    os.killpg(0, signal.SIGKILL)  # this process leads the group of its children


def _has_taken(trial: "_Trial", control: socket.socket) -> bool:
    """Fork a child, and return whether it has taken a socket, once it has; it takes none when the decoder has ended."""
    taken, taking = os.pipe()
    if os.fork() == 0:
        os.close(taken)
        _child(trial, control, taking)
    os.close(taking)
    with open(taken, "rb") as signals:
        return signals.read(1) != b""


def _child(trial: "_Trial", control: socket.socket, taking: int) -> None:
    """Try the next format, and exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # what a crash prints may quote the format
        with_stack(STACK, partial(trial.outcome, _COMMON))  # until a format comes, so that it does not wait for it
        for received in socket.recv_fds(control, 1, 1)[1]:
            os.write(taking, b".")
            control.close()
            _answer(trial, socket.socket(fileno=received))
    finally:
        os._exit(0)


def _answer(trial: "_Trial", asked: socket.socket) -> None:
    asked.sendall(BEGUN)
    with asked.makefile("rb") as request:
        given = request.read()
    _limit()
    asked.sendall(json.dumps(with_stack(STACK, partial(trial.outcome, given))).encode())


def _limit() -> None:
    """Let the kernel end this process when it needs too much."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    data = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (data + MEMORY, data + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@dataclass(frozen=True, slots=True)
class _Trial:
    """Reads and tries formats for one tokenizer, with `marks` around function calls."""

    tokenizer: LLTokenizer
    marks: Marks

    def outcome(self, given: bytes) -> dict[str, object]:
        """Return what the decoder is told of the format of a request: the spec, or the error and its field, or the name
        of an error of our own."""
        ends = time.monotonic() + FORMAT_SECONDS
        try:
            message = DecoderServiceGenerateRequest.FromString(given)
            spec = format_spec(message, self.marks, lambda each: self._compile(each, ends))
        except InvalidRequest as error:
            return {"refused": error.message, "param": error.param}
        except MemoryError:
            os._exit(0)
        except Exception as error:
            return {"failed": type(error).__name__}
        return {"kind": spec.kind, "given": spec.given, "param": spec.param}

    def _compile(self, spec: GrammarSpec, ends: float) -> None:
        """Compile `spec`. Raises UnusableGrammar if it is not a grammar, and InvalidRequest when enough has been tried
        or it holds up every answer."""
        if time.monotonic() > ends:
            raise InvalidRequest(TOO_COMPLEX, param=spec.param)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        matcher = matcher_of(spec, self.tokenizer)
        begin(matcher)
        started = time.thread_time()
        matcher.compute_logit_bias()
        if time.thread_time() - started > MASK_SECONDS:
            raise InvalidRequest(TOO_COMPLEX, param=spec.param)


if __name__ == "__main__":
    main(Path(sys.argv[1]), (sys.argv[2], sys.argv[3]), [int(stop) for stop in sys.argv[4:]])
