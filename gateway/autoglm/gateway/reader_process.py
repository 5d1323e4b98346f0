"""The process in which large bodies are read: it forks a child for each.

A child has limits of CPU time and memory, and low priority. It dies alone, whatever its body does to it, and as soon as
the gateway closes its socket: at the request's deadline, or when the client or the gateway is gone. The process itself
only forks: it has one thread and every module that a child needs, so a fork is cheap and safe.

A socket on stdin brings two descriptors for each body: of a socket, over which the work comes, pickled, and of a file
in memory with the body. Back go BEGUN and then a REPLY, which says where in the file the pickled outcome begins and
ends; nothing more if the child dies.
"""

import gc
import importlib
import io
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from fcntl import F_GETFL, F_SETFL, F_SETOWN, fcntl
from pathlib import Path
from typing import Any

from autoglm.common.errors import MeshError
from autoglm.common.priority import give_way

ROUTES = "autoglm.gateway.openai.app"  # the module that imports whatever reads a body

CPU_SECONDS = 3.0  # 32 MB of JSON, all escapes, take 0.2 s
MEMORY_PER_BYTE = 24  # of a body: orjson reserves twelve times its size, of which it uses little
MEMORY = 64 * 2**20  # bytes, for any body
BEGUN = b"+"
REPLY = struct.Struct("=QQ")
MAX_WORK_BYTES = 64 * 1024
APART_BYTES = 64 * 1024  # from which a value is written after the others, so that it can be read without the lock

Work = Callable[[bytes], Any]


class OutcomePickler(pickle.Pickler):
    """Writes large values to `file` itself, and where they are to the pickle."""

    def __init__(self, small: io.BytesIO, file: io.FileIO) -> None:
        super().__init__(small, pickle.HIGHEST_PROTOCOL)
        self._file = file

    def persistent_id(self, value: object) -> tuple[bool, int, int] | None:
        """Return whether `value` is text and where it begins and ends, None for what is pickled."""
        if not isinstance(value, bytes | str) or len(value) < APART_BYTES:
            return None
        start = self._file.tell()
        write(self._file, value.encode(errors="surrogatepass") if isinstance(value, str) else value)
        return isinstance(value, str), start, self._file.tell()


class OutcomeUnpickler(pickle.Unpickler):
    """Reads what an OutcomePickler has written."""

    def __init__(self, small: bytes, file: io.FileIO) -> None:
        super().__init__(io.BytesIO(small))
        self._file = file

    def persistent_load(self, place: tuple[bool, int, int]) -> bytes | str:
        """Return a large value."""
        is_text, start, end = place
        data = read(self._file, start, end)
        return data.decode(errors="surrogatepass") if is_text else data


def write(file: io.FileIO, data: bytes | bytearray) -> None:
    """Write all of `data`."""
    with memoryview(data) as left:
        done = 0
        while done < len(left):
            done += os.write(file.fileno(), left[done:])


def read(file: io.FileIO, start: int, end: int) -> bytes:
    """Return a part of the file."""
    return os.pread(file.fileno(), end - start, start)


def main() -> None:
    """Fork a child for each body that comes in, until the gateway ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for children
    importlib.import_module(ROUTES)
    gc.freeze()
    control = socket.socket(fileno=sys.stdin.fileno())
    while received := socket.recv_fds(control, 1, 2)[1]:
        with socket.socket(fileno=received[0]) as asked, open(received[1], "r+b", buffering=0) as file:
            if os.fork() == 0:
                _child(asked, file)
    os.killpg(0, signal.SIGKILL)  # this process leads the group of its children


def _child(asked: socket.socket, file: io.FileIO) -> None:
    """Read one body, and exit."""
    try:
        os.close(sys.stdin.fileno())
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # what a crash prints may quote the body
        asked.send(BEGUN)
        work, size = pickle.loads(asked.recv(MAX_WORK_BYTES)), os.fstat(file.fileno()).st_size
        _end_with(asked)
        _limit(size)
        small = io.BytesIO()
        file.seek(size)
        OutcomePickler(small, file).dump(_outcome(work, read(file, 0, size)))
        start = file.tell()
        write(file, small.getvalue())
        asked.send(REPLY.pack(start, file.tell()))
    finally:
        os._exit(0)


def _end_with(asked: socket.socket) -> None:
    """Let the kernel end this process when the gateway closes its end of the socket."""
    fcntl(asked, F_SETOWN, os.getpid())
    fcntl(asked, F_SETFL, fcntl(asked, F_GETFL) | os.O_ASYNC)  # SIGIO, which ends a process
    try:
        asked.recv(1, socket.MSG_DONTWAIT)  # returns if it was closed before
    except BlockingIOError:
        return
    os._exit(0)


def memory_limit(size: int) -> int:
    """Return how many bytes more than the process that forks a child may take for a body of `size` bytes."""
    return MEMORY_PER_BYTE * size + MEMORY


def _limit(size: int) -> None:
    """Let the kernel end this process when it needs too much for a body of `size` bytes."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    data = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
    most = data + memory_limit(size)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    give_way()


def _outcome(work: Work, body: bytes) -> tuple[bool, Any]:
    """Return whether the work was done, and its result or else its error."""
    try:
        return True, work(body)
    except MeshError as error:
        return False, error
    except MemoryError:
        os._exit(0)
    except Exception:
        return False, RuntimeError(traceback.format_exc())  # of any class, which the gateway may not know


if __name__ == "__main__":
    main()
