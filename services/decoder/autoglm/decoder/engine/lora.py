"""LoRA adapters: small additions to the decoder's matrices, chosen per request; one batch can hold several of them.

An adapter is a folder in PEFT's format (adapter_config.json, adapter_model.safetensors).
Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021.
"""

import json
import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from cachetools import LRUCache
from safetensors.torch import load_file
from torch import Tensor

from autoglm.common.bundle import BundleError

MATRICES = {  # of PEFT's modules, the engine's matrix; it computes the first three in one product
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "o", "gate_up_proj": "gate_up", "down_proj": "down",
}  # fmt: skip
_KEY = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight")
_PLAIN: Mapping[str, object] = {"peft_type": "LORA", "bias": "none", "use_dora": False, "modules_to_save": None}

Shapes = Mapping[str, tuple[int, int]]  # of the decoder's own matrices, by PEFT's name of the module: outputs, inputs


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter: for layer and matrix (qkv, o, gate_up, down) the factors A [inputs, rank] and B [rank, outputs],
    scaled, so that x·A·B is what it adds; none where the engine reads `folder` itself. `revision` tells it from every
    other."""

    name: str
    revision: str
    folder: Path
    factors: Mapping[tuple[int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)


def load(folder: Path, name: str, revision: str, shapes: Shapes, dtype: torch.dtype, device: torch.device) -> Adapter:
    """Read an adapter; raises BundleError if it is not a LoRA of a decoder of these `shapes`."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    odd = [key for key, value in _PLAIN.items() if config.get(key, value) != value]
    odd += [key for key in ("rank_pattern", "alpha_pattern") if config.get(key)]
    if odd:
        raise BundleError(f"adapter {name}: {odd[0]} {config[odd[0]]!r} is not supported")
    pairs = _pairs(load_file(folder / "adapter_model.safetensors"), name, shapes)
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    factors = {at: _joined(parts, shapes, scale, dtype, device) for at, parts in pairs.items()}
    return Adapter(name, revision, folder, factors)


Parts = dict[str, tuple[Tensor, Tensor]]  # by PEFT's name of the module: A [rank, inputs], B [outputs, rank]


def _pairs(weights: Mapping[str, Tensor], name: str, shapes: Shapes) -> dict[tuple[int, str], Parts]:
    found: dict[tuple[int, str], Parts] = {}
    for key, down in weights.items():
        match = _KEY.fullmatch(key)
        module = match[2] if match else ""
        if match is None or module not in shapes:
            raise BundleError(f"adapter {name}: {key} belongs to no matrix of the decoder")
        if match[3] == "B":
            continue
        up = weights[key.replace("lora_A", "lora_B")]
        if (up.shape[0], down.shape[1]) != shapes[module]:
            raise BundleError(f"adapter {name}: {key} is for a matrix of {[up.shape[0], down.shape[1]]}")
        found.setdefault((int(match[1]), MATRICES[module]), {})[module] = (down, up)
    return found


def _joined(
    parts: Parts, shapes: Shapes, scale: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return A and B of one matrix of the engine, which may hold several of PEFT's side by side."""
    modules = [module for module in shapes if MATRICES[module] == MATRICES[next(iter(parts))]]
    downs = torch.cat([parts[module][0] for module in modules if module in parts])
    ups, rank = torch.zeros(len(downs), sum(shapes[module][0] for module in modules)), 0
    column = 0
    for module in modules:
        if module in parts:
            up = parts[module][1]
            ups[rank : rank + up.shape[1], column : column + len(up)] = scale * up.T
            rank += up.shape[1]
        column += shapes[module][0]
    return downs.T.to(device, dtype).contiguous(), ups.to(device, dtype)


class Adapters:
    """The adapters of a bundle by name, of which the last `limit` that were asked for stay in memory.

    Any thread may ask.
    """

    def __init__(self, load_one: Callable[[str], Adapter], names: Iterable[str], limit: int) -> None:
        self._load, self.names = load_one, tuple(names)
        self._loaded: LRUCache[str, Adapter] = LRUCache(limit)
        self._lock = threading.Lock()

    def get(self, name: str) -> Adapter:
        """Return an adapter, read from disk if it is not in memory; raises KeyError for one that the bundle does not
        have, BundleError for one that cannot be used."""
        if name not in self.names:
            raise KeyError(name)
        with self._lock:
            if (adapter := self._loaded.get(name)) is None:
                adapter = self._loaded[name] = self._load(name)
            return adapter

    @property
    def loaded(self) -> frozenset[str]:
        """Return the names of those in memory."""
        return frozenset(self._loaded)
