"""What other users of the machine can do to a running mesh."""

import os
from contextlib import suppress
from pathlib import Path

import psutil

from ..mesh import Mesh
from ..other_user import what_another_user_can_do

SOCKETS = {"cache.sock", "grpc.sock", "grpc-admin.sock", "admin.sock", "metrics.sock", "plasma_store", "raylet"}


def inner(mesh: Mesh) -> Path:
    """The folder into which the parts write, below the one that only its user can enter."""
    return Path(mesh.redis_url.removeprefix("unix://")).parent


def test_another_user_reaches_no_file_and_no_socket(mesh: Mesh) -> None:
    folder = inner(mesh)
    assert folder.parent.name.startswith("autoglm-")
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    files = [path for path in folder.rglob("*") if path.name in SOCKETS or path.suffix in (".log", ".cfg", ".pem")]
    sockets = {path.name for path in files if path.is_socket()}
    assert sockets == SOCKETS
    assert what_another_user_can_do(folder.parent, folder, files) == []


def test_all_is_written_below_the_private_folder(mesh: Mesh) -> None:
    written = set[str]()
    for process in mesh.descendants():
        with suppress(psutil.NoSuchProcess):
            written |= {file.path for file in process.open_files() if getattr(file, "mode", "r") != "r"}
            written |= {str(line.laddr) for line in process.net_connections("unix") if str(line.laddr).startswith("/")}
    written -= {str(mesh.log)}
    assert len(written) > 10
    own = inner(mesh).parent
    outside = [path for path in written if not path.startswith("/dev/") and not Path(path).is_relative_to(own)]
    assert not [path for path in outside if Path(path).exists()]
    assert os.listdir(own) == ["r"]
