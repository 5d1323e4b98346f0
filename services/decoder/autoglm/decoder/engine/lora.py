"""LoRA adapters: small additions to the decoder's matrices, chosen per request; one batch can hold several of them.

An adapter is a folder in PEFT's format (see adapter_files.py).
Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from cachetools import LRUCache
from safetensors.torch import load_file
from torch import Tensor

from autoglm.decoder.engine.adapter_files import KEY, MATRICES, WEIGHTS, AdaptedMatrices, Shapes, check_adapter


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter: for layer and matrix (qkv, o, gate_up, down) the factors A [inputs, rank] and B [rank, outputs],
    scaled, so that x·A·B is what it adds; none where the engine reads `folder` itself. `revision` tells it from every
    other."""

    name: str
    revision: str
    folder: Path
    factors: Mapping[tuple[int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)


def load(
    folder: Path, name: str, revision: str, decoder: AdaptedMatrices, dtype: torch.dtype, device: torch.device
) -> Adapter:
    """Read an adapter; raises BundleError if it is not a LoRA of this decoder."""
    config = check_adapter(folder, decoder)
    pairs = _pairs(load_file(folder / WEIGHTS))
    factors = {at: _joined(parts, decoder.shapes, config.scale, dtype, device) for at, parts in pairs.items()}
    return Adapter(name, revision, folder, factors)


Parts = dict[str, tuple[Tensor, Tensor]]  # by PEFT's name of the module: A [rank, inputs], B [outputs, rank]


def _pairs(weights: Mapping[str, Tensor]) -> dict[tuple[int, str], Parts]:
    found: dict[tuple[int, str], Parts] = {}
    for key, down in weights.items():
        if (match := KEY.fullmatch(key)) and match[3] == "A":
            layer, module = int(match[1]), match[2]
            up = weights[key.replace("lora_A", "lora_B")]
            found.setdefault((layer, MATRICES[module]), {})[module] = (down, up)
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
