"""Files that may change while the gateway runs, such as mounted secrets: loaded at start, reloaded when they change."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoglm.gateway.metrics import GatewayMetrics

logger = logging.getLogger("autoglm.gateway.file_watcher")

Stamp = tuple[tuple[int, int, int] | None, ...]


class FileError(ValueError):
    """A file cannot be used. The message says why in one line, and contains nothing from the file."""


def read(path: Path) -> bytes:
    """Return a file's bytes; raises FileError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror})") from None


@dataclass(slots=True)
class _Followed:
    """Files that are loaded together, and their state when they were last loaded."""

    name: str
    paths: Sequence[Path]
    load: Callable[[], None]
    stamp: Stamp


class FileWatcher:
    """Calls loaders again when their files change. While new files are invalid, the previous version stays in use."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics
        self._followed: list[_Followed] = []

    def follow(self, name: str, paths: Sequence[Path], load: Callable[[], None]) -> None:
        """Call `load` now, and again when one of `paths` changes; raises the FileError of the first call."""
        followed = _Followed(name, paths, load, _stamp(paths))
        load()
        self._metrics.reloaded(name, True)
        self._followed.append(followed)

    async def run(self, interval: float) -> None:
        """Check every `interval` seconds until cancelled."""
        while True:
            await asyncio.sleep(interval)
            self.check()

    def check(self) -> None:
        """Reload what has changed since the last check."""
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
            logger.error("reloading %s failed, keeping the previous version: %s", followed.name, error)
        else:
            self._metrics.reloaded(followed.name, True)
            logger.info("reloaded %s", followed.name)


def _stamp(paths: Sequence[Path]) -> Stamp:
    """Return a value that differs after a change, including a symbolic link that points elsewhere, as in Kubernetes."""
    return tuple(map(_stamp_of, paths))


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
