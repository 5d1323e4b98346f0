"""The preset at its true sizes, on the meta device and in files that are holes."""

import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    GlmConfig,
    GlmForCausalLM,
    MobileViTConfig,
    MobileViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from autoglm.bundles import placement
from autoglm.bundles.check import BundleReport, inspect
from autoglm.cli import mesh
from autoglm.common.bundle import Bundle
from autoglm.fusion.gcma.model import GcmaConfig, GcmaFusion

from .samples import NAME


def hollow(file: Path, model: nn.Module) -> None:
    """Write a safetensors file of `model`'s shapes in bf16 without contents: a header, and a hole behind it."""
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        counter = not tensor.is_floating_point()
        size = tensor.numel() * (8 if counter else 2)
        kind = "I64" if counter else "BF16"
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(8 + len(text) + end)


@pytest.fixture(scope="module")
def true(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """The preset at its true widths, and the GLM at its true depth: 19 GB of which a few kilobytes are written."""
    root = shutil.copytree(bundle.root, tmp_path_factory.mktemp("true") / "nine")
    for file in root.rglob("*.safetensors*"):
        file.unlink()
    made = {
        "vision": (MobileViTForImageClassification, MobileViTConfig(num_labels=1000)),
        "speech": (WhisperForConditionalGeneration, WhisperConfig()),
        "decoder": (GlmForCausalLM, GlmConfig()),
    }
    with torch.device("meta"):
        for part, (kind, config) in made.items():
            hollow(root / part / "model.safetensors", kind(config))
            config.save_pretrained(root / part)
        fusion = GcmaConfig(text_width=4096, media_widths={"image": 640, "audio": 1536})
        hollow(root / "fusion" / "model.safetensors", GcmaFusion(fusion))
    shape = {"text_width": 4096, "media_widths": {"image": 640, "audio": 1536}, "image_grid": [7, 7]}
    (root / "fusion" / "config.json").write_text(json.dumps(shape))
    yield Bundle(root, NAME, "gcma", {name: replace(part, files={}) for name, part in bundle.parts.items()})
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def report(true: Bundle) -> BundleReport:
    return inspect(true)


def test_the_true_sizes_are_those_of_the_published_models(report: BundleReport) -> None:
    assert report.faults == []
    sizes = {part.name: part.parameters for part in report.parts}
    assert sizes["decoder"] == 9_399_951_360
    unused = {part.name: part.unused for part in report.parts}
    assert sizes["vision"] + unused["vision"] == pytest.approx(5.6e6, rel=0.01)
    assert unused["vision"] == 641_000  # the head of 1000 classes
    assert sizes["speech"] == pytest.approx(8.2e6, rel=0.01)
    assert unused["speech"] > 29e6  # Whisper's own decoder
    decoder = report.parts[-1]
    assert decoder.bf16 == 2 * sizes["decoder"]
    assert 0.5 < decoder.int8 / decoder.bf16 < 0.6


def test_two_cards_of_24_gb_hold_the_preset_with_the_decoder_alone_on_the_second(report: BundleReport) -> None:
    devices = placement.parse("24GB,24 GB")
    first, second = placement.place(report, devices, mesh.placement(len(devices)))
    assert (first.device, first.services, first.fits) == ("cuda:0", ("vision", "speech"), True)
    assert (second.device, second.services, second.fits) == ("cuda:1", ("decoder",), True)
    cache = 2 * 2 * 40 * 2 * 128 * second.sequences * second.length  # keys and values, bf16, layers, heads, sizes
    assert second.length == placement.AGENT_CONTEXT
    assert 0 < 2 * cache <= second.left < 2 * (cache + cache // second.sequences)  # as much again for prefixes


@pytest.mark.parametrize(("memory", "fits"), [("16GB,16GB", False), ("80GiB", True), ("8GB", False)])
def test_what_does_not_fit_is_said(report: BundleReport, memory: str, fits: bool) -> None:
    devices = placement.parse(memory)
    placed = placement.place(report, devices, mesh.placement(len(devices)))
    assert placed[-1].fits is fits
    assert (placed[-1].left < 0) is not fits
