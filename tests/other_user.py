"""Another user of this machine, who tries to get at the files and sockets of a mesh."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NOBODY = 65534

# It becomes that user after its imports: the interpreter may be where only root can read.
ATTEMPTS = """
import json, os, socket, sys
user, top, inner, sockets, files = json.loads(sys.argv[1])
os.setgroups([])
os.setgid(int(user))
os.setuid(int(user))

def outcome(attempt, *arguments):
    try:
        attempt(*arguments)
    except OSError as error:
        return type(error).__name__
    return "done"

def connect(path, kind):
    with socket.socket(socket.AF_UNIX, kind) as line:
        line.connect(path)

def put(path):
    with open(path, "w") as file:
        file.write("ours")

seen = {
    "list the top": outcome(os.listdir, top),
    "list": outcome(os.listdir, inner),
    "rename the top": outcome(os.rename, top, top + ".moved"),
    "remove the top": outcome(os.rmdir, top),
    "open the top to all": outcome(os.chmod, top, 0o777),
    "rename": outcome(os.rename, inner, inner + ".moved"),
    "put a file": outcome(put, inner + "/file"),
    "put a link": outcome(os.symlink, "/", inner + "/link"),
}
for path in sockets:
    seen["connect to " + path] = outcome(connect, path, socket.SOCK_STREAM)
    seen["send to " + path] = outcome(connect, path, socket.SOCK_DGRAM)
for path in sockets + files:
    seen["look at " + path] = outcome(os.stat, path)
    seen["write to " + path] = outcome(put, path)
    seen["rename " + path] = outcome(os.rename, path, path + ".moved")
    seen["remove " + path] = outcome(os.unlink, path)
print(json.dumps(seen))
"""


def what_another_user_can_do(top: Path, inner: Path, paths: Sequence[Path]) -> list[str]:
    """Return which attempts on `top`, on `inner` below it and on `paths` below that are not refused.

    Without root's rights nobody can become another user: then it is the permissions of `top` that are looked at.
    """
    if os.geteuid() != 0:
        state = top.lstat()
        return [f"{state}"] if state.st_uid != os.geteuid() or stat.S_IMODE(state.st_mode) & 0o077 else []
    sockets = [str(path) for path in paths if path.is_socket()]
    files = [str(path) for path in paths if not path.is_socket()]
    command = [sys.executable, "-c", ATTEMPTS, json.dumps((NOBODY, str(top), str(inner), sockets, files))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    return [attempt for attempt, outcome in json.loads(done.stdout).items() if outcome != "PermissionError"]
