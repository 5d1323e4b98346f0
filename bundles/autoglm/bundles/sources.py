"""Published weights: found in a local folder or on the hub, and brought into a bundle."""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from autoglm.common.bundle import BundleError, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_WANTED = (
    "config.json", "generation_config.json", "preprocessor_config.json", "vocab.json", "tokenizer.json",
    "tokenizer_config.json", "chat_template.jinja", WEIGHTS, INDEX, "model-*-of-*.safetensors",
)  # fmt: skip


def locate(source: str) -> Path:
    """Return the folder of `source`: a local one, or owner/name or owner/name@revision, downloaded to the hub's cache.

    Raises BundleError when it is neither, or when the hub does not provide it.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(source):
        raise BundleError(
            f"there is no folder {source}; name a folder, or a hub id as owner/name or owner/name@revision"
        )
    from huggingface_hub import snapshot_download

    name, _, revision = source.partition("@")
    try:
        # Patterns also match in subfolders, which hold other formats of the same weights.
        wanted, other = list(_WANTED), ["*/*"]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted, ignore_patterns=other))
    except Exception as error:  # the hub's client raises errors of several unrelated trees
        raise BundleError(
            f"{source} is not a local folder, and the hub does not provide it ({str(error).strip().splitlines()[0]});"
            " download it in another way and use its folder"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a part: one, or all shards of its index. Raises BundleError for a missing one."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise BundleError(f"{folder} has no {WEIGHTS} and no {INDEX}; convert the weights to safetensors")
    names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise BundleError(f"{folder} lacks {missing[0]}, which its index names; restore the file")
    return [folder / name for name in names]


def copy(folder: Path, names: Iterable[str], target: Path) -> None:
    """Copy those of the small files `names` that are in `folder`."""
    for name in names:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)


def take_weights(folder: Path, target: Path) -> str:
    """Link the weights of `folder` into `target` (hard links; copies on another filesystem); return what was done."""
    files = weight_files(folder)
    linked = [_link(file.resolve(), target / file.name) for file in files]
    copy(folder, [] if (folder / WEIGHTS).is_file() else [INDEX], target)
    how = "linked" if all(linked) else "copied"
    return (
        f"{how} {len(files)} weight file{'s' * (len(files) > 1)}, {sum(f.stat().st_size for f in files) / 1e9:.2f} GB"
    )


def _link(file: Path, target: Path) -> bool:
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
        return False
    return True
