"""Nobody but the user who starts a mesh can enter its folder, or replace it."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from autoglm.cli import private_folder
from autoglm.cli.processes import StartError

from ...other_user import NOBODY, what_another_user_can_do


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that becomes the temporary folder, with a path that is short enough."""
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as folder:
        monkeypatch.setattr(private_folder, "LONGEST_BASE", len(folder))
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_another_user_reaches_nothing_whatever_is_open_below() -> None:
    with private_folder.private_folder() as inner, socket.socket(socket.AF_UNIX) as server:
        path = inner / "open.sock"
        server.bind(str(path))
        server.listen()
        inner.chmod(0o777)
        path.chmod(0o666)
        assert what_another_user_can_do(inner.parent, inner, [path]) == []
        inner.parent.chmod(0o755)  # the attempts themselves work, so that the refusals above count
        assert what_another_user_can_do(inner.parent, inner, [path]) != []
    assert not inner.parent.exists()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_no_umask_opens_it(umask: int) -> None:
    before = os.umask(umask)
    try:
        with private_folder.private_folder() as inner:
            assert inner.parent.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_haproxys_socket_fits_with_the_longest_base_and_pid() -> None:
    path = "b" * private_folder.LONGEST_BASE + private_folder.LONGEST_NAME
    with socket.socket(socket.AF_UNIX) as server:
        with pytest.raises(FileNotFoundError):  # its folders are not there, but it has the right length
            server.bind(path)
        with pytest.raises(OSError, match="path too long"):
            server.bind(path + "b")


def test_a_long_temporary_folder_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert private_folder.temporary_base() == Path("/tmp")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o757])
def test_a_base_that_others_can_write_to_is_refused(short: Path, mode: int) -> None:
    short.chmod(mode)
    with (
        pytest.raises(StartError, match=rf"replace what is in {short}: run chmod \+t"),
        private_folder.private_folder(),
    ):
        pass
    assert list(short.iterdir()) == []
    short.chmod(mode | 0o1000)
    with private_folder.private_folder() as inner:
        assert inner.is_relative_to(short)


def test_a_parent_that_others_can_write_to_is_refused(short: Path) -> None:
    base = short / "b"
    base.mkdir(0o700)
    short.chmod(0o777)
    with pytest.raises(StartError, match=f"replace what is in {short}:"):
        private_folder.check_path(base)


def test_a_link_is_followed_to_where_it_leads(short: Path) -> None:
    (short / "open" / "b").mkdir(parents=True)
    (short / "link").symlink_to("open/b")
    private_folder.check_path(short / "link")
    (short / "open").chmod(0o777)
    with pytest.raises(StartError, match=f"replace what is in {short}/open:"):
        private_folder.check_path(short / "link")


def test_what_belongs_to_another_user_is_refused(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = short / "theirs"
    folder.mkdir(0o700)
    with suppress(PermissionError):  # root gives it away; anyone else pretends to be another user
        os.chown(folder, NOBODY, NOBODY)
    if folder.stat().st_uid == os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    with pytest.raises(StartError, match="belongs to another user"):
        private_folder.check_path(folder)
    with pytest.raises(StartError, match="does not keep other users out"):
        private_folder.check_private(folder)


@pytest.mark.parametrize("mode", [0o710, 0o701, 0o777])
def test_a_file_system_without_permissions_is_refused(short: Path, mode: int) -> None:
    folder = short / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(StartError, match=f"the file system of {short} does not keep other users out"):
        private_folder.check_private(folder)
