"""Files that are written whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, whose file replaces `path` when the block ends.

    The file is synced to disk first, so that after a crash `path` has its old or its new content. When the block
    raises, `path` stays as it was. The temporary file is removed in either case. Its name ends in .tmp, so that one
    left by a killed process is not found by the suffix of `path`.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`; a reader sees the old file or the new one, never part of it."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
