"""What of a bundle goes on which device, by the rule of `autoglm serve`, and whether it fits.

An estimate from sizes alone: weights as the services hold them, and a fixed room a service for the runtime and
what a forward pass needs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from autoglm.bundles.check import Report
from autoglm.common.bundle import BundleError
from autoglm.common.modalities import APPLICATION_PARTS, ApplicationName
from autoglm.decoder.settings import DecoderSettings

ROOM = 1_000_000_000
AGENT_CONTEXT = 8192  # tokens of a phone agent's step: its long system prompt, a screenshot, a long answer
_UNITS = {"GB": 1_000_000_000, "GIB": 1 << 30}


@dataclass(frozen=True, slots=True)
class Device:
    """A place to compute, with its memory in bytes."""

    name: str
    memory: int


@dataclass(frozen=True, slots=True)
class Placed:
    """What one device holds, in bytes. `left` is what remains, negative for what lacks.

    With a decoder on it `left` is for keys and values: `sequences` of `length` tokens each find room, on a GPU beside
    as much for prefixes.
    """

    device: str
    services: tuple[str, ...]
    memory: int
    weights: int
    left: int
    sequences: int = 0
    length: int = 0

    @property
    def fits(self) -> bool:
        """Whether everything, and at least one conversation, has room."""
        return self.left >= 0 and ("decoder" not in self.services or self.sequences > 0)


def parse(text: str) -> list[Device]:
    """Return the GPUs of a what-if, "24GB,24GB"; raises BundleError for anything else."""
    devices = []
    for index, item in enumerate(text.split(",")):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GB|GiB)\s*", item, re.IGNORECASE)
        if match is None:
            raise BundleError(f"{item!r} is no memory of a GPU; write for example 24GB,24GB")
        devices.append(Device(f"cuda:{index}", int(float(match[1]) * _UNITS[match[2].upper()])))
    return devices


def gpus() -> list[Device]:
    """Return the GPUs that PyTorch sees here."""
    found = range(torch.cuda.device_count())
    return [Device(f"cuda:{index}", torch.cuda.get_device_properties(index).total_memory) for index in found]


def place(report: Report, devices: Sequence[Device], homes: Mapping[str, str]) -> list[Placed]:
    """Return what each of `devices` holds; `homes` names the device of a service, the first device when it does not."""
    parts = {part.name for part in report.parts}
    services = [service for service in APPLICATION_PARTS if service in parts]
    placed = []
    for device in devices:
        here = tuple(service for service in services if homes.get(service, devices[0].name) == device.name)
        if here:
            placed.append(_placed(report, device, here))
    return placed


def _placed(report: Report, device: Device, services: tuple[ApplicationName, ...]) -> Placed:
    on_gpu = device.name.startswith("cuda")
    # Encoders compute in float32; the decoder does on a CPU, and in bf16 on a GPU.
    widths: dict[ApplicationName, int] = {service: 1 if service == "decoder" and on_gpu else 2 for service in services}
    sizes: dict[str, int] = {part.name: part.bf16 for part in report.parts}
    weights = sum(widths[service] * sizes.get(part, 0) for service in services for part in APPLICATION_PARTS[service])
    left = device.memory - weights - ROOM * len(services)
    if "decoder" not in services:
        return Placed(device.name, services, device.memory, weights, left)
    slots_share = 2 if on_gpu else 1  # there half of the cache is for prefixes
    tokens = max(0, left) // (report.cache_per_token * widths["decoder"] * slots_share)
    length = min(tokens, report.context, AGENT_CONTEXT)
    slots = DecoderSettings.model_fields["max_num_seqs"].default
    sequences = min(slots, tokens // length) if length else 0
    return Placed(device.name, services, device.memory, weights, left, sequences, length)
