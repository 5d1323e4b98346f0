"""The two files of a LoRA adapter in PEFT's format, checked before it is served, without torch or its weights."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from safetensors import SafetensorError, safe_open

from autoglm.common.bundle import Bundle, BundleError, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MATRICES = {  # of PEFT's modules, the engine's matrix; it computes the first three in one product
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "o", "gate_up_proj": "gate_up", "down_proj": "down",
}  # fmt: skip
KEY = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight")
_PLAIN: Mapping[str, object] = {"peft_type": "LORA", "bias": "none", "use_dora": False, "modules_to_save": None}

Shapes = Mapping[str, tuple[int, int]]  # of the decoder's own matrices, by PEFT's name of the module: outputs, inputs


@dataclass(frozen=True, slots=True)
class AdaptedMatrices:
    """What a decoder has for adapters: so many layers, and in each of them matrices of these shapes."""

    layers: int
    shapes: Shapes


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What an adapter's config says: the rank of its factors, and by what their product is multiplied."""

    rank: int
    scale: float

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the config in `folder`; raises BundleError if it is damaged or not one of a plain LoRA."""
        file = folder / CONFIG
        raw = read_json(file)
        odd = [key for key, value in _PLAIN.items() if raw.get(key, value) != value]
        odd += [key for key in ("rank_pattern", "alpha_pattern") if raw.get(key)]
        if odd:
            raise BundleError(f"{file}: {odd[0]} {raw[odd[0]]!r} is not supported; train a plain LoRA")
        rank, alpha = raw.get("r"), raw.get("lora_alpha")
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise BundleError(f"{file}: r is {rank!r}, not a positive integer; restore the file")
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
            raise BundleError(f"{file}: lora_alpha is {alpha!r}, not a number; restore the file")
        return cls(rank, alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank))


def check_adapters(bundle: Bundle, decoder: AdaptedMatrices | None = None) -> None:
    """Check every adapter of a bundle; see `check_adapter`."""
    for name in bundle.adapters:
        check_adapter(bundle.adapter(name), decoder)


def check_adapter(folder: Path, decoder: AdaptedMatrices | None = None) -> AdapterConfig:
    """Return the config of the adapter in `folder`, whose weights are those of a LoRA with this config.

    Raises BundleError, which names the file and what is wrong with it, if they are not, or if they are for another
    decoder than one with these matrices (None: any).
    """
    config, file = AdapterConfig.load(folder), folder / WEIGHTS
    try:
        with safe_open(file, "np") as opened:
            found = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{file} is not a whole safetensors file ({error}); restore the file") from error
    if fault := next(_faults(found, config.rank, decoder), None):
        raise BundleError(f"{file}: {fault}; use an adapter that was trained on this decoder")
    return config


def _faults(found: Mapping[str, tuple[int, ...]], rank: int, decoder: AdaptedMatrices | None) -> Iterator[str]:
    if not found:
        yield "it has no tensors"
    for key, shape in found.items():
        match = KEY.fullmatch(key)
        if match is None or match[2] not in MATRICES:
            yield f"{key} belongs to no matrix of the decoder"
            continue
        layer, module, factor = int(match[1]), match[2], match[3]
        partner = key.replace(f"lora_{factor}", f"lora_{'B' if factor == 'A' else 'A'}")
        if partner not in found:
            yield f"it has {key} and not {partner}"
        if len(shape) != 2 or shape[0 if factor == "A" else 1] != rank:
            yield f"{key} has shape {list(shape)}, and {CONFIG} says r {rank}"
        elif decoder is not None:
            yield from _misfits(key, layer, shape, factor, module, decoder)


def _misfits(
    key: str, layer: int, shape: tuple[int, ...], factor: str, module: str, decoder: AdaptedMatrices
) -> Iterator[str]:
    outputs, inputs = decoder.shapes[module]
    if layer >= decoder.layers:
        yield f"{key} is for layer {layer}, and the decoder has {decoder.layers} layers"
    elif (factor == "A" and shape[1] != inputs) or (factor == "B" and shape[0] != outputs):
        yield f"{key} has shape {list(shape)}, and the decoder's {module} has {outputs} outputs and {inputs} inputs"
