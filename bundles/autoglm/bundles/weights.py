"""The tensors that a part needs, from its config alone, and those that its files have, from their headers alone.

The models are built on the meta device, where tensors have a shape and no memory, and only the header of a safetensors
file is read. The nine billion parameters of a GLM are checked in seconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import MobileViTConfig, MobileViTModel
from transformers.models.glm import GlmConfig, GlmForCausalLM

from autoglm.bundles.sources import weight_files
from autoglm.common.bundle import BundleError, read_json
from autoglm.common.modalities import PartName
from autoglm.fusion.gcma.model import GcmaConfig, GcmaFusion
from autoglm.speech.model import SpeechEncoder, load_config

_FLOATS = ("F32", "BF16", "F16")
_NAMED = 3


@dataclass(frozen=True, slots=True)
class PartModel:
    """The model that serves a part: `build` makes it from the part's folder, `model_type` is transformers' name for it
    (empty for a model of our own), `prefix` is what published files, which have a head as well, put before the names of
    its tensors."""

    build: Callable[[Path], nn.Module]
    model_type: str = ""
    prefix: str = ""


PART_MODELS: Mapping[PartName, PartModel] = {
    "vision": PartModel(lambda f: MobileViTModel(MobileViTConfig.from_pretrained(f)), "mobilevit", "mobilevit."),
    "speech": PartModel(lambda folder: SpeechEncoder(load_config(folder)), "whisper", "model."),
    "fusion": PartModel(lambda folder: GcmaFusion(GcmaConfig.load(folder))),
    "decoder": PartModel(lambda folder: GlmForCausalLM(GlmConfig.from_pretrained(folder)), "glm"),
}


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file: its shape, and its type as safetensors names it."""

    shape: tuple[int, ...]
    dtype: str


def check_type(name: PartName, folder: Path) -> None:
    """Raise BundleError when `folder` has a model of another type than the one that serves the part."""
    found, expected = read_json(folder / "config.json").get("model_type"), PART_MODELS[name].model_type
    if expected and found != expected:
        raise BundleError(
            f"{folder} has a model of type {found}, and the {name} part must be of transformers' type {expected};"
            " choose another model"
        )


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The model that serves a part, on the meta device, and its config."""

    model: nn.Module
    config: Any


def skeleton(name: PartName, folder: Path) -> Skeleton:
    """Build the model that serves a part on the meta device; raises BundleError for a config it cannot have."""
    check_type(name, folder)
    try:
        with torch.device("meta"):
            model = PART_MODELS[name].build(folder)
        return Skeleton(model, model.config)
    except Exception as error:  # transformers checks fields with errors of its own tree
        raise BundleError(f"{folder / 'config.json'} does not describe a {name} model ({error}); restore it") from error


def stored(folder: Path) -> dict[str, Stored]:
    """Return every tensor of a part's files by name; raises BundleError for a file that is not whole."""
    tensors: dict[str, Stored] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, "pt") as opened:
                slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
                tensors |= {key: Stored(tuple(s.get_shape()), s.get_dtype()) for key, s in slices.items()}
        except SafetensorError as error:
            raise BundleError(f"{file} is not a whole safetensors file ({error}); restore the file") from error
    return tensors


@dataclass(frozen=True, slots=True)
class TensorComparison:
    """How many elements of the files a model does not load, and what is wrong with the tensors that it does."""

    unused: int
    faults: list[str]


def compare(name: PartName, whole: Skeleton, tensors: Mapping[str, Stored]) -> TensorComparison:
    """Compare a part's `tensors` with its skeleton: all present, each of the right shape and of a floating type."""
    expected = whole.model.state_dict()
    if name == "decoder" and whole.config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    prefix = PART_MODELS[name].prefix
    found = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    counters = {key for key, tensor in expected.items() if not tensor.is_floating_point()}
    faults = [f"has no tensor {key}" for key in expected if key not in found and key not in counters]
    for key in expected.keys() & found.keys() - counters:
        shape, dtype = tuple(expected[key].shape), found[key].dtype
        if found[key].shape != shape:
            faults.append(f"{key} has shape {list(found[key].shape)}, and its config asks for {list(shape)}")
        if dtype not in _FLOATS:
            faults.append(f"{key} has type {dtype}, and the services load {', '.join(_FLOATS)}")
    unused = sum(torch.Size(tensor.shape).numel() for key, tensor in found.items() if key not in expected)
    return TensorComparison(unused, _few(sorted(faults)))


def _few(faults: list[str]) -> list[str]:
    rest = len(faults) - _NAMED
    return faults[:_NAMED] + ([f"… and {rest} more tensors like these"] if rest > 0 else [])


def parameters(model: nn.Module) -> int:
    """Return how many parameters a model has."""
    return sum(parameter.numel() for parameter in model.parameters())


def bf16_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's tensors at two bytes an element."""
    elements: int = sum(tensor.numel() for tensor in model.state_dict().values())
    return 2 * elements


def int8_bytes(model: nn.Module) -> int:
    """Return the bytes with linear layers and convolutions in 8 bits, a float scale a row, and the rest in bf16."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    quantized = sum(int(layer.weight.numel()) for layer in layers)
    rows = sum(int(layer.weight.shape[0]) for layer in layers)
    return bf16_bytes(model) - quantized + 4 * rows
