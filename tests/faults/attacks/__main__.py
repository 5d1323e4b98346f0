"""A hostile client in a process of its own, so that it takes nothing from who measures: python -m tests.faults.attacks.

It reads commands from stdin, a line each: `make NAME`, `start` and `stop`; it answers `ready` and `stopped`, and prints
what it learned and in how many seconds as a line of JSON after each time that it has sent its request.
"""

import json
import os
import sys
import threading
import time

from .catalog import ATTACKS
from .sending import Send, Servers


def main(http_url: str, grpc_address: str) -> None:
    """Obey commands until stdin ends."""
    os.nice(10)  # what is measured is what the servers do with the requests
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
