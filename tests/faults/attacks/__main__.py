"""A hostile client in a process of its own, so that it takes nothing from who measures: python -m tests.faults.attacks.

It reads commands from stdin, a line each: `make NAME`, `start` and `stop`; it answers `ready` and `stopped`, and prints
what it learned and in how many seconds as a line of JSON after each time that it has sent its request.
"""

import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from .catalog import ATTACKS
from .sending import Send, Servers


def main(http_url: str, grpc_address: str) -> None:
    """Obey commands until stdin ends."""
    give_way()
    servers, ended, attacking = Servers.of(http_url, grpc_address), threading.Event(), threading.Thread()
    for line in sys.stdin:
        word, _, name = line.strip().partition(" ")
        if word == "make":
            send = ATTACKS[name].make()
            print("ready", flush=True)
        elif word == "start":
            ended.clear()
            attacking = threading.Thread(target=attack, args=(send, servers, ended), daemon=True)
            attacking.start()
        else:
            ended.set()
            attacking.join()
            print("stopped", flush=True)


def give_way() -> None:
    """Lower the priority of this process and of its session, which Linux schedules against other sessions: what is
    measured is what the servers do with the requests."""
    os.nice(10)
    with suppress(OSError):  # a kernel without autogroups
        Path("/proc/self/autogroup").write_text("10", encoding="ascii")


def attack(send: Send, servers: Servers, ended: threading.Event) -> None:
    """Send again and again until `ended`."""
    while not ended.is_set():
        started = time.monotonic()
        try:
            outcome = send(servers)
        except OSError as error:  # before the servers could say anything
            outcome = type(error).__name__
        print(json.dumps([outcome, time.monotonic() - started]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
