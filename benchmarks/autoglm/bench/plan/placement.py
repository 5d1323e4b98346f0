"""Which device runs what: replicas are put on the first device that has memory and time for them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from autoglm.bench.plan.costs import StageCosts
from autoglm.bench.plan.schema import PlanError
from autoglm.common.modalities import ApplicationName

Service = Literal["gateway", "vision", "speech", "decoder", "monolith"]
SERVICES: tuple[ApplicationName, ...] = ("vision", "speech", "decoder")
FULL = 0.85  # of a device's time, where replicas share it


@dataclass(frozen=True, slots=True)
class Placement:
    """The replicas on each device; those of a gateway are listed where it uses the same cores."""

    devices: tuple[tuple[Service, ...], ...]

    def count(self, service: Service) -> int:
        """Return the replicas of a service."""
        return sum(device.count(service) for device in self.devices)

    @property
    def dedicated(self) -> bool:
        """Return whether no decoder shares its device with anything else."""
        return all(len(device) == 1 for device in self.devices if _runs_decoder(device))

    def with_decoders(self, count: int) -> "Placement":
        """Return it with only the first `count` devices that run a decoder, if those run nothing else."""
        alone = [device for device in self.devices if _runs_decoder(device)]
        others = [device for device in self.devices if not _runs_decoder(device)]
        return Placement((*others, *alone[:count]))


def _runs_decoder(device: tuple[Service, ...]) -> bool:
    return "decoder" in device or "monolith" in device


def memory_of(costs: StageCosts, service: Service) -> int:
    """Return the bytes that a replica takes; a decoder's without its keys and values."""
    if service == "monolith":
        return sum(memory_of(costs, each) for each in SERVICES)
    return {
        "gateway": costs.gateway.memory_bytes,
        "vision": costs.vision.memory_bytes,
        "speech": costs.speech.memory_bytes,
        "decoder": costs.decoder.memory_bytes,
    }[service]


def longest_bytes(costs: StageCosts) -> int:
    """Return the bytes of keys and values that a decoder has to hold at least: those of the longest sequence, and on a
    GPU as much again for prefixes."""
    return costs.decoder.max_model_len * costs.decoder.kv_bytes_per_token * (1 if costs.on_cpu else 2)


def cache_bytes(costs: StageCosts, device: Iterable[Service]) -> int:
    """Return the bytes that a device has for a decoder's keys and values."""
    free = costs.memory_bytes - sum(memory_of(costs, service) for service in device)
    return max(0, int(costs.cache_share * free))


def place(costs: StageCosts, counts: Mapping[Service, int], demand: Mapping[Service, float]) -> Placement:
    """Return where `counts` replicas run that need so much of a device's time each: `demand` is in busy cores.

    Raises PlanError if one does not fit on an empty device.
    """
    devices: list[list[Service]] = []
    for service in sorted(counts, key=lambda name: -demand[name]):
        for _ in range(counts[service]):
            home = next((each for each in devices if _has_space(costs, [*each, service], demand)), None)
            if home is None:
                devices.append(home := [])
                _check_memory(costs, service)
            home.append(service)
    order: list[Service] = ["monolith", "decoder", "vision", "speech", "gateway"]
    return Placement(tuple(tuple(sorted(device, key=order.index)) for device in devices))


def _has_space(costs: StageCosts, device: list[Service], demand: Mapping[Service, float]) -> bool:
    here = Counter(device)
    decoders = here["decoder"] + here["monolith"]
    if not costs.on_cpu and decoders > 1:  # each takes what memory is left for its keys and values
        return False
    busy = sum(number * demand[service] for service, number in here.items())
    needed = decoders * longest_bytes(costs)
    return busy <= FULL * costs.cores and cache_bytes(costs, device) >= needed


def _check_memory(costs: StageCosts, service: Service) -> None:
    kv = longest_bytes(costs) if service in ("decoder", "monolith") else 0
    if cache_bytes(costs, [service]) < kv or memory_of(costs, service) > costs.memory_bytes:
        needed = memory_of(costs, service) + kv / costs.cache_share
        raise PlanError(
            f"{service} does not fit: weights and one conversation of {costs.decoder.max_model_len} tokens need "
            f"{needed / 1e9:.1f} GB, {costs.device} has {costs.memory_bytes / 1e9:.1f} GB"
        )
