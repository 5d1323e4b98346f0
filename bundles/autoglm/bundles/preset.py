"""Assembles a bundle from published weights: two encoders, a GLM, and a new fusion between them."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoglm.bundles.check import inspect
from autoglm.bundles.fresh import embedding_rms, fresh_fusion
from autoglm.bundles.sources import copy, locate, take_weights
from autoglm.bundles.text import add_media_tokens, chat_template
from autoglm.bundles.weights import compare, parameters, skeleton, stored
from autoglm.common.bundle import Bundle, BundleError, write_manifest
from autoglm.common.modalities import PartName
from autoglm.fusion.gcma.model import GcmaConfig
from autoglm.speech.model import STACK
from autoglm.vision.models.mobilevit import STRIDE, Preprocessing


@dataclass(frozen=True, slots=True)
class Sources:
    """The source of each part: a folder or a hub id."""

    vision: str
    speech: str
    decoder: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A source that has been found and is of the right type."""

    folder: Path
    config: Any


def assemble(out: Path, name: str, sources: Sources, say: Callable[[str], None]) -> Bundle:
    """Make the bundle `name` at `out` from `sources`, reporting each step with `say`.

    Everything is written to a draft next to `out`, checked, and then renamed: `out` is complete or does not exist.
    Raises BundleError when `out` exists, a source cannot be found, or the sources do not fit each other.
    """
    _must_be_new(out)
    vision, speech = _find("vision", sources.vision), _find("speech", sources.speech)
    decoder = _find("decoder", sources.decoder)
    draft = out.with_name(f"{out.name}.draft-{os.getpid()}")
    try:
        say(f"vision   {sources.vision}: {_vision(vision, _part(draft, 'vision'))}")
        say(f"speech   {sources.speech}: {_speech(speech, _part(draft, 'speech'))}")
        say(f"decoder  {sources.decoder}: {_decoder(decoder, _part(draft, 'decoder'))}")
        config = _fusion_config(vision, speech, decoder, side=Preprocessing.load(draft / "vision").side)
        say(f"fusion   new: {_fusion(config, _part(draft, 'fusion'))}")
        say("hashing and comparing every file")
        report = inspect(write_manifest(draft, name, "gcma"))
        if report.faults:
            raise BundleError("these sources do not make a bundle:\n" + "\n".join(report.faults))
        _must_be_new(out)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Bundle.open(out)


def _must_be_new(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise BundleError(f"{out} exists and is left as it is; choose another folder, or remove it first")


def _find(name: PartName, source: str) -> _Found:
    folder = locate(source)
    built = skeleton(name, folder)
    if faults := compare(name, built, stored(folder)).faults:
        raise BundleError(f"{source} is not a complete {name} part: {'; '.join(faults)}")
    return _Found(folder, built.config)


def _part(draft: Path, name: PartName) -> Path:
    folder = draft / name
    folder.mkdir(parents=True)
    return folder


def _vision(source: _Found, target: Path) -> str:
    copy(source.folder, ["config.json"], target)
    published = (source.folder / "preprocessor_config.json").is_file()
    (Preprocessing.load(source.folder) if published else Preprocessing(flip_channels=True)).save(target)
    return take_weights(source.folder, target)


def _speech(source: _Found, target: Path) -> str:
    characters = ["vocab.json"] if source.config.vocab_size else []  # a published Whisper's are its decoder's
    copy(source.folder, ["config.json", "preprocessor_config.json", *characters], target)
    return take_weights(source.folder, target)


def _decoder(source: _Found, target: Path) -> str:
    copy(source.folder, ["config.json", "generation_config.json", "tokenizer_config.json"], target)
    (target / "chat_template.jinja").write_text(chat_template(source.folder), encoding="utf-8")
    added = add_media_tokens(source.folder, target, source.config.vocab_size)
    tokens = ", ".join(f"{text} is {token_id}" for text, token_id in added.items())
    return take_weights(source.folder, target) + (f"; new tokens: {tokens}" if added else "")


def _fusion_config(vision: _Found, speech: _Found, decoder: _Found, side: int) -> GcmaConfig:
    """Return the sizes of a fusion between three parts, for pictures of `side` pixels."""
    return GcmaConfig(
        text_width=decoder.config.hidden_size,
        media_widths={"image": vision.config.neck_hidden_sizes[-1], "audio": STACK * speech.config.d_model},
        image_grid=(side // STRIDE, side // STRIDE),
        max_added=embedding_rms(decoder.folder),
    )


def _fusion(config: GcmaConfig, target: Path) -> str:
    model = fresh_fusion(config)
    model.save_pretrained(target)
    size = parameters(model) / 1e6
    return f"{size:.1f} million parameters, gates closed, media tokens scaled like words ({config.max_added:.4f})"
