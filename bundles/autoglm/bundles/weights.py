"""What a part's weights must be, from its config alone, and what its files hold, from their headers alone.

The models are built on the meta device, where tensors have a shape and no memory; of a safetensors file only
the header is read. So the nine billion parameters of a GLM are checked in seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import MobileViTConfig, MobileViTModel
from transformers.models.glm import GlmConfig, GlmForCausalLM

from autoglm.bundles.sources import read_json, weight_files
from autoglm.common.bundle import BundleError
from autoglm.common.modalities import PartName
from autoglm.fusion.gcma.model import GcmaConfig, GcmaFusion
from autoglm.speech.model import SpeechEncoder, load_config

# What a part is served by: transformers' name of the architecture, and the prefix that published files, which
# hold a head beside the encoder, put before its tensors.
MODEL_TYPES: Mapping[PartName, str] = {"vision": "mobilevit", "speech": "whisper", "decoder": "glm"}
_PREFIXES: Mapping[PartName, str] = {"vision": "mobilevit.", "speech": "model.", "fusion": "", "decoder": ""}
_FLOATS = ("F32", "BF16", "F16")
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file: its shape and its type in safetensors' words."""

    shape: tuple[int, ...]
    dtype: str


def check_type(name: PartName, folder: Path) -> None:
    """Raise BundleError when `folder` holds another architecture than the part is served by."""
    found = read_json(folder / "config.json").get("model_type")
    if name in MODEL_TYPES and found != MODEL_TYPES[name]:
        raise BundleError(
            f"{folder} holds a model of type {found}, and the {name} part must be of transformers' type"
            f" {MODEL_TYPES[name]}; give another"
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
            model = _build(name, folder)
        return Skeleton(model, model.config)
    except Exception as error:  # transformers checks fields with errors of its own tree
        raise BundleError(f"{folder / 'config.json'} makes no {name} model ({error}); restore the file") from error


def _build(name: PartName, folder: Path) -> nn.Module:
    model: nn.Module
    if name == "vision":
        model = MobileViTModel(MobileViTConfig.from_pretrained(folder))
    elif name == "speech":
        model = SpeechEncoder(load_config(folder))
    elif name == "decoder":
        model = GlmForCausalLM(GlmConfig.from_pretrained(folder))
    else:
        model = GcmaFusion(GcmaConfig.load(folder))
    return model


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
class Comparison:
    """What of the files a model does not load (elements), and what is wrong with the rest."""

    unused: int
    faults: list[str]


def compare(name: PartName, whole: Skeleton, tensors: Mapping[str, Stored]) -> Comparison:
    """Hold a part's `tensors` against its skeleton: all there, each of the right shape and of a floating type."""
    expected = whole.model.state_dict()
    if name == "decoder" and whole.config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    prefix = _PREFIXES[name]
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
    return Comparison(unused, _few(sorted(faults)))


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
    """Return the bytes with linear layers and convolutions in 8 bits and a float scale a row, the rest at bf16.

    This is the form that services/vision serves; the other parts are served in floating point today.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    quantized = sum(int(layer.weight.numel()) for layer in layers)
    rows = sum(int(layer.weight.shape[0]) for layer in layers)
    return bf16_bytes(model) - quantized + 4 * rows
