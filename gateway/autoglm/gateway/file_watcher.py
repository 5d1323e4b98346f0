"""Files that may change while the gateway runs, such as a mounted secret: read at start, and again when they change."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoglm.gateway.metrics import Metrics

logger = logging.getLogger("autoglm.gateway.file_watcher")

Stamp = tuple[tuple[int, int, int] | None, ...]


class FileError(ValueError):
    """A file cannot be used; the message says why in one line, and holds nothing of its content."""


def read(path: Path) -> bytes:
    """Return a file's bytes; raises FileError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror})") from None


@dataclass(slots=True)
class _Followed:
    """Files that are read together, and how they were when they were read last."""

    name: str
    paths: Sequence[Path]
    load: Callable[[], None]
    stamp: Stamp


class Files:
    """Has what was made of files made again when they change; while they are broken it stays as it was."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._followed: list[_Followed] = []

    def follow(self, name: str, paths: Sequence[Path], load: Callable[[], None]) -> None:
        """Call `load` now and whenever one of `paths` has changed; raises the FileError of the first time."""
        followed = _Followed(name, paths, load, _stamp(paths))
        load()
        self._metrics.reloaded(name, True)
        self._followed.append(followed)

    async def run(self, interval: float) -> None:
        """Look every `interval` seconds until cancelled."""
        while True:
            await asyncio.sleep(interval)
            self.look()

    def look(self) -> None:
        """Read again what has changed since the last look."""
        for followed in self._followed:
            stamp = _stamp(followed.paths)
            if stamp != followed.stamp:
                followed.stamp = stamp
                self._reload(followed)

    def _reload(self, followed: _Followed) -> None:
        try:
            followed.load()
        except FileError as error:
            self._metrics.reloaded(followed.name, False)
            logger.error("%s has changed and cannot be used, so the last one holds: %s", followed.name, error)
        else:
            self._metrics.reloaded(followed.name, True)
            logger.info("%s has changed and was read again", followed.name)


def _stamp(paths: Sequence[Path]) -> Stamp:
    """Return what differs after a change, also when a symbolic link on the way points elsewhere, as in Kubernetes."""
    return tuple(map(_stamp_of, paths))


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
