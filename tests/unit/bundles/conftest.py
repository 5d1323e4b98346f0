"""Published parts and the bundle made of them, once a run."""

import shutil
from pathlib import Path

import pytest

from autoglm.bundles.preset import Sources, assemble
from autoglm.common.bundle import Bundle

from .samples import NAME, save_decoder, save_speech, save_vision


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Three folders as transformers saves them, of a few kilobytes each."""
    root = tmp_path_factory.mktemp("published")
    save_vision(root / "vision")
    save_speech(root / "speech")
    save_decoder(root / "decoder")
    return Sources(*(str(root / name) for name in ("vision", "speech", "decoder")))


@pytest.fixture(scope="session")
def bundle(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The assembled bundle; tests that damage one take a copy."""
    return assemble(tmp_path_factory.mktemp("out") / "nine", NAME, sources, print)


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return shutil.copytree(bundle.root, tmp_path / "copy")
