"""Files that are written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then put it at `path`: a crash leaves the old file or the new one."""
    draft = path.with_name(f"tmp-{path.name}")
    write(draft)
    os.replace(draft, path)
