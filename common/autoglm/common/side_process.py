"""Processes beside a server that fork children for work which may crash or not end."""

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence


def start(
    command: Sequence[str],
    kind: socket.SocketKind = socket.SOCK_STREAM,
    environment: Mapping[str, str] | None = None,
) -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """Start `command` with one end of a pair of sockets of this kind as its stdin, and return it and the other end."""
    ours, theirs = socket.socketpair(type=kind)
    # A process group, so that its children end with it, and a signal at the terminal is not for it. No session: Linux
    # gives each of them the same part of the CPU, whatever the niceness in it (autogroups).
    with theirs:
        process = subprocess.Popen(
            command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment, process_group=0
        )
    return process, ours


def end(process: "subprocess.Popen[bytes]", control: socket.socket) -> None:
    """End the process and its children; those of one that has ended have seconds left."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    control.close()
