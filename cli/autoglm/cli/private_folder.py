"""The folder of a running mesh, which no other user of the machine can enter.

Ray gives its own folder mode 0777, and HAProxy's admin socket in it is open to everyone who can reach it. So all files,
sockets and logs of a mesh are below a folder with mode 0700, whose path nobody else can change.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoglm.cli.processes import StartError

PREFIX = "autoglm-"
INNER = "r"
# HAProxy binds its socket under a temporary name, below a folder with the name of Ray's node (56 characters).
LONGEST_NAME = f"/{PREFIX}12345678/{INNER}/{'n' * 56}/admin.sock.4194304.tmp"
LONGEST_BASE = 107 - len(LONGEST_NAME)  # a Unix socket's path has at most 107 bytes
REMEDY = f"set TMPDIR to a folder of your own with at most {LONGEST_BASE} characters in its path"


@contextmanager
def private_folder() -> Iterator[Path]:
    """Give a temporary folder that only this user can reach, with a path short enough for Unix sockets.

    It is removed at the end. Raises StartError if another user could enter it, or replace a part of its path.
    """
    base = temporary_base()
    check_path(base)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=base) as outer:
        check_private(Path(outer))
        inner = Path(outer) / INNER
        inner.mkdir()
        yield inner


def temporary_base() -> Path:
    """Return TMPDIR if its path is short enough, else /tmp."""
    base = tempfile.gettempdir()
    return Path(base if len(os.fsencode(base)) <= LONGEST_BASE else "/tmp")


def check_path(folder: Path) -> None:
    """Raise StartError if a user other than us and root can rename or replace `folder`, or a part of its path.

    A folder in which everyone can write is accepted with the sticky bit, as /tmp has it. Links are followed.
    """
    for part in (folder, *folder.parents):
        state = part.lstat()
        if state.st_uid not in (0, os.geteuid()):
            raise StartError(f"{part} belongs to another user, who could take over the mesh: {REMEDY}")
        if stat.S_ISLNK(state.st_mode):
            check_path((part.parent / part.readlink()).absolute())
        elif state.st_mode & 0o022 and not state.st_mode & stat.S_ISVTX:
            raise StartError(f"other users can replace what is in {part}: run chmod +t {part}, or {REMEDY}")


def check_private(folder: Path) -> None:
    """Raise StartError if `folder` is not ours, or has permissions for others: not every file system has modes."""
    state = folder.lstat()
    if state.st_uid != os.geteuid() or state.st_mode & 0o077:
        raise StartError(f"the file system of {folder.parent} does not keep other users out: {REMEDY}")
