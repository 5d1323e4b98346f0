"""The process in which formats are tried before the decoder compiles them: it forks a child for each.

A child has a limit of CPU time, of time, of memory and of stack. When llguidance crashes or does not end, only the
child dies. The process itself only forks: it has one thread, the tokenizer, and no torch, so a fork is cheap and safe.
One child is always ready for the next trial: a fork, and the pages that a child writes to first, take twice as long as
a common format. The process ends with the decoder, whose end of its socket closes even when the decoder is killed, and
ends its children.

    python -m autoglm.decoder.engine.trial_process TOKENIZER STOP…

A socket on stdin brings one socket for each trial. What comes over that is {kind, given} in JSON, up to the end of
file; back go BEGUN and then {empty, error} in JSON, or nothing more if the child dies.
"""

import json
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

from llguidance import LLTokenizer

from autoglm.common.priority import give_way
from autoglm.decoder.engine.deep_stack import with_stack
from autoglm.decoder.engine.masks import MASK_SECONDS, SlowMask
from autoglm.decoder.engine.matchers import EmptyGrammar, UnusableGrammar, begin, matcher_of, spelling
from autoglm.decoder.engine.request import GrammarSpec

CPU_SECONDS = 3.0  # llguidance needs 0.7 s for a schema with OpenAI's 5000 properties
SECONDS = 15.0  # of a child that hardly gets a CPU
MEMORY = 256 * 2**20  # bytes, above the tokenizer's: that schema takes 28 MiB
STACK = 8 * 2**20  # bytes: 300 nested objects, or a chain of 2400 rules
BEGUN = b"+"
_COMMON = b'{"kind": "json_schema", "given": "{}"}'


def main(tokenizer: Path, stops: list[int]) -> None:
    """Keep a child ready for the next socket that comes in, until the decoder ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for children
    give_way()
    trie, control = spelling(tokenizer, stops), socket.socket(fileno=sys.stdin.fileno())
    while _has_taken(trie, control):
        pass
    os.killpg(0, signal.SIGKILL)  # this process leads the group of its children


def _has_taken(tokenizer: LLTokenizer, control: socket.socket) -> bool:
    """Fork a child, and return whether it has taken a socket, once it has; it takes none when the decoder has ended."""
    taken, taking = os.pipe()
    if os.fork() == 0:
        os.close(taken)
        _child(tokenizer, control, taking)
    os.close(taking)
    with open(taken, "rb") as signals:
        return signals.read(1) != b""


def _child(tokenizer: LLTokenizer, control: socket.socket, taking: int) -> None:
    """Try the next format, and exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # what a crash prints may quote the format
        with_stack(STACK, lambda: _outcome(_COMMON, tokenizer))  # until a format comes, so that it does not wait for it
        for received in socket.recv_fds(control, 1, 1)[1]:
            os.write(taking, b".")
            control.close()
            _try(tokenizer, socket.socket(fileno=received))
    finally:
        os._exit(0)


def _try(tokenizer: LLTokenizer, trial: socket.socket) -> None:
    trial.sendall(BEGUN)
    with trial.makefile("rb") as request:
        given = request.read()
    _limit()
    trial.sendall(json.dumps(with_stack(STACK, lambda: _outcome(given, tokenizer))).encode())


def _limit() -> None:
    """Let the kernel end this process when it needs too much."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    data = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (data + MEMORY, data + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _outcome(given: bytes, tokenizer: LLTokenizer) -> dict[str, object]:
    """Return what the decoder is told of a format; raises SlowMask for one that holds up every answer."""
    read = json.loads(given)
    spec = GrammarSpec(read["kind"], read["given"] if isinstance(read["given"], str) else tuple(read["given"]))
    try:
        matcher = matcher_of(spec, tokenizer)
        begin(matcher)
    except UnusableGrammar as error:
        return {"empty": isinstance(error, EmptyGrammar), "error": str(error)}
    started = time.thread_time()
    matcher.compute_logit_bias()
    if time.thread_time() - started > MASK_SECONDS:
        raise SlowMask
    return {"empty": False, "error": None}


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(stop) for stop in sys.argv[2:]])
