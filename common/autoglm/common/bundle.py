"""A bundle is the folder that is served: `bundle.json`, one folder per part, and LoRA adapters in `adapters/NAME/`.

Every part is in Hugging Face format and can be loaded alone, so a service opens only its own part. The manifest lists
the files of each part with their SHA-256. A part's revision is the hash of those hashes, so it changes with weights,
config or preprocessing.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autoglm.common.files import write_atomically
from autoglm.common.modalities import PARTS, PartName

ADAPTERS = "adapters"
MANIFEST = "bundle.json"
FORMAT = 1
DEFAULT_BUNDLE = "autoglm-phone-nano"
# What published client code calls the model, whatever bundle is served.
ALIASES = ("autoglm-phone-9b", "autoglm-phone-9b-multilingual")


class BundleError(ValueError):
    """The bundle is missing, damaged, incomplete or unknown to this release; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a bundle: its revision, and its files with their SHA-256."""

    revision: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A manifest that has been read; the parts have not."""

    root: Path
    name: str
    architecture: str
    parts: Mapping[PartName, Part]
    adapters: Mapping[str, Part] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path | str, named_by: str = "AUTOGLM_BUNDLE") -> "Bundle":
        """Read `root`/bundle.json; raises BundleError when it is missing or cannot be read.

        `named_by` is the argument or variable of the calling program that names the folder, for the error.
        """
        root = Path(root).expanduser().resolve()
        try:
            raw = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
            if raw["format"] != FORMAT:
                raise BundleError(f"{root} has bundle format {raw['format']}; this release reads format {FORMAT}")
            parts: dict[PartName, Part] = {name: Part(**raw["parts"][name]) for name in PARTS if name in raw["parts"]}
            adapters = {name: Part(**part) for name, part in raw.get("adapters", {}).items()}
            return cls(root, raw["name"], raw["architecture"], parts, adapters)
        except FileNotFoundError as error:
            raise BundleError(
                f"no bundle at {root}: {MANIFEST} is missing; set {named_by} to a bundle's folder"
            ) from error
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise BundleError(f"{root / MANIFEST} is damaged ({error!r}); restore it") from error

    def part(self, name: PartName) -> Path:
        """Return the folder of a part; raises BundleError when the part or one of its files is missing, or a JSON file
        is damaged."""
        if name not in self.parts:
            raise BundleError(f"bundle {self.name} has no {name} part; it serves without that modality")
        return self._whole(name, self.parts[name])

    def adapter(self, name: str) -> Path:
        """Return a LoRA adapter's folder; raises KeyError for an unknown one, BundleError as `part`."""
        return self._whole(f"{ADAPTERS}/{name}", self.adapters[name])

    def _whole(self, where: str, part: Part) -> Path:
        folder = self.root / where
        missing = [file for file in part.files if not (folder / file).is_file()]
        if missing:
            raise BundleError(f"bundle {self.name} lacks {where}/{missing[0]}; restore the file")
        for file in part.files:
            if file.endswith(".json"):
                read_json(folder / file)
        return folder

    def revision(self, name: PartName) -> str:
        """Return the revision of a part; raises BundleError when the bundle does not have it."""
        self.part(name)
        return self.parts[name].revision

    def verify(self, names: Iterable[PartName] | None = None) -> None:
        """Check the SHA-256 of every file of the parts `names`, by default of all; adapters belong to the decoder.

        Raises BundleError, naming the first file that differs.
        """
        chosen = tuple(self.parts if names is None else names)
        parts: dict[str, Part] = {name: self.parts[name] for name in chosen if self.part(name)}
        if "decoder" in chosen:
            parts |= {f"{ADAPTERS}/{name}": part for name, part in self.adapters.items() if self.adapter(name)}
        for where, part in parts.items():
            for file, expected in part.files.items():
                if sha256_file(self.root / where / file) != expected:
                    raise BundleError(f"{where}/{file} of bundle {self.name} is damaged; restore the file")


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a bundle; raises BundleError when it is missing or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{file} is missing; restore the file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file} is damaged ({error}); restore the file") from error
    if not isinstance(content, dict):
        raise BundleError(f"{file} is damaged (it is not a JSON object); restore the file")
    return content


def write_manifest(root: Path, name: str, architecture: str) -> Bundle:
    """Write `root`/bundle.json for the parts in `root`, atomically, and return the bundle."""
    parts = {part: asdict(describe(root / part)) for part in PARTS if (root / part).is_dir()}
    manifest: dict[str, object] = {"format": FORMAT, "name": name, "architecture": architecture, "parts": parts}
    if (root / ADAPTERS).is_dir():
        folders = sorted(path for path in (root / ADAPTERS).iterdir() if path.is_dir())
        manifest["adapters"] = {folder.name: asdict(describe(folder)) for folder in folders}
    write_atomically(root / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    return Bundle.open(root)


def describe(folder: Path) -> Part:
    """Return the revision and the file hashes of a part's folder."""
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
    digest = hashlib.sha256("".join(f"{name}:{value}\n" for name, value in files.items()).encode())
    return Part(revision=digest.hexdigest()[:16], files=files)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_bundle() -> Path:
    """Return the folder of the nano bundle: that of the installed package, or of the checkout."""
    here = Path(__file__).resolve()
    installed = here.parents[1] / "assets" / "bundles" / DEFAULT_BUNDLE
    return installed if installed.is_dir() else here.parents[3] / "bundles" / DEFAULT_BUNDLE


def chosen_bundle(configured: str = "") -> Path:
    """Return the folder to serve: `configured`, else AUTOGLM_BUNDLE, else the nano bundle."""
    return Path(configured or os.environ.get("AUTOGLM_BUNDLE") or default_bundle())
