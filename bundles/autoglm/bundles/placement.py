"""Which part of a bundle goes on which device, by the rule of `autoglm serve`, and whether it fits.

An estimate from sizes alone: the weights in the form in which the services keep them, and a fixed amount for each
service for the runtime and the forward pass.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from autoglm.bundles.check import BundleReport
from autoglm.common.bundle import BundleError
from autoglm.common.modalities import APPLICATION_PARTS, ApplicationName
from autoglm.decoder.settings import DecoderSettings

SERVICE_BYTES = 1_000_000_000
AGENT_CONTEXT = 8192  # tokens of a phone agent's step: its long system prompt, a screenshot, a long answer
_UNITS = {"GB": 1_000_000_000, "GIB": 1 << 30}


@dataclass(frozen=True, slots=True)
class Device:
    """A device to compute on, with its memory in bytes."""

    name: str
    memory: int


@dataclass(frozen=True, slots=True)
class Placed:
    """The load of one device, in bytes. `left` is what remains; it is negative when memory is missing.

    On the device of the decoder, `left` is for keys and values: `sequences` of `length` tokens each fit, on a GPU with
    as much again for prefixes.
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
        """Whether everything fits, and at least one conversation."""
        return self.left >= 0 and ("decoder" not in self.services or self.sequences > 0)


def parse(text: str) -> list[Device]:
    """Return the GPUs that a text such as "24GB,24GB" describes; raises BundleError for anything else."""
    devices = []
    for index, item in enumerate(text.split(",")):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GB|GiB)\s*", item, re.IGNORECASE)
        if match is None:
            raise BundleError(f"{item!r} is not a GPU's memory; write for example 24GB,24GB")
        devices.append(Device(f"cuda:{index}", int(float(match[1]) * _UNITS[match[2].upper()])))
    return devices


def gpus() -> list[Device]:
    """Return the GPUs that PyTorch sees here."""
    found = range(torch.cuda.device_count())
    return [Device(f"cuda:{index}", torch.cuda.get_device_properties(index).total_memory) for index in found]


def place(report: BundleReport, devices: Sequence[Device], homes: Mapping[str, str]) -> list[Placed]:
    """Return the load of each of `devices`; `homes` maps services to devices, by default the first."""
    parts = {part.name for part in report.parts}
    services = [service for service in APPLICATION_PARTS if service in parts]
    placed = []
    for device in devices:
        here = tuple(service for service in services if homes.get(service, devices[0].name) == device.name)
        if here:
            placed.append(_placed(report, device, here))
    return placed


def _placed(report: BundleReport, device: Device, services: tuple[ApplicationName, ...]) -> Placed:
    on_gpu = device.name.startswith("cuda")
    # Encoders compute in float32, and so does the decoder on a CPU; on a GPU it computes in bf16.
    widths: dict[ApplicationName, int] = {service: 1 if service == "decoder" and on_gpu else 2 for service in services}
    sizes: dict[str, int] = {part.name: part.bf16 for part in report.parts}
    weights = sum(widths[service] * sizes.get(part, 0) for service in services for part in APPLICATION_PARTS[service])
    left = device.memory - weights - SERVICE_BYTES * len(services)
    if "decoder" not in services:
        return Placed(device.name, services, device.memory, weights, left)
    slots_share = 2 if on_gpu else 1  # on a GPU half of the cache is for prefixes
    tokens = max(0, left) // (report.cache_per_token * widths["decoder"] * slots_share)
    length = min(tokens, report.context, AGENT_CONTEXT)
    slots = DecoderSettings.model_fields["max_num_seqs"].default
    sequences = min(slots, tokens // length) if length else 0
    return Placed(device.name, services, device.memory, weights, left, sequences, length)
