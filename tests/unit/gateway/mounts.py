"""Files that change as mounted secrets do."""

from pathlib import Path


class Mount:
    """A secret as Kubernetes mounts it: each file is a link into `..data`, itself a link that is swapped whole."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._version = folder, 0

    def path(self, name: str) -> str:
        """Return what a setting names."""
        return str(self._folder / name)

    def put(self, **files: bytes) -> None:
        """Swap in the next version of all files."""
        self._version += 1
        version = self._folder / f"..{self._version}"
        version.mkdir()
        for name, content in files.items():
            (version / name).write_bytes(content)
            link = self._folder / name
            if not link.is_symlink():
                link.symlink_to(f"..data/{name}")
        swapped = self._folder / "..data_tmp"
        swapped.symlink_to(version.name)
        swapped.replace(self._folder / "..data")
