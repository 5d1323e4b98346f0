"""Files are written whole or not at all, and nothing is left over."""

from pathlib import Path

import pytest

from autoglm.common.files import replacing, write_atomically


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    for data in (b"first", b"second"):
        write_atomically(tmp_path / "a.json", data)
        assert (tmp_path / "a.json").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def half() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        half()
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]


def test_a_block_that_writes_nothing_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.npy"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_file_is_not_found_by_the_suffix(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.npy") as temporary:
        temporary.write_bytes(b"")
        assert list(tmp_path.glob("*.npy")) == []
    assert list(tmp_path.glob("*.npy")) == [tmp_path / "a.npy"]
