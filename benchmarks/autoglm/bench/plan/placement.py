"""Which device runs what: replicas are put on the first device that has memory and time for them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from autoglm.bench.plan.costs import StageCosts
from autoglm.bench.plan.engine import limits_of
from autoglm.bench.plan.schema import PlanError
from autoglm.common.modalities import ApplicationName

Service = Literal["gateway", "vision", "speech", "decoder", "monolith"]
SERVICES: tuple[ApplicationName, ...] = ("vision", "speech", "decoder")
NEARLY = 0.95
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

    def shard(self, decoders: int) -> "PlacementShard":
        """Return a part with `decoders` of the decoders, if those share their devices with nothing else, and with as
        small a part of the other devices as whole devices allow."""
        count = self.count("decoder") + self.count("monolith")
        if not self.dedicated or decoders >= count:
            return PlacementShard(self, 1.0, 1.0)
        others = Counter(device for device in self.devices if not _runs_decoder(device))
        (alone,) = {device for device in self.devices if _runs_decoder(device)}
        part, least = decoders / count, min(others.values(), default=1)
        of_others = next((k / least for k in range(1, least) if k / least >= part and _whole(others, k / least)), 1.0)
        kept = [device for device, number in others.items() for _ in range(int(number * of_others + 1e-9))]
        return PlacementShard(Placement((*kept, *[alone] * decoders)), part, of_others if others else part)


@dataclass(frozen=True, slots=True)
class PlacementShard:
    """Some of the devices of a placement: the part of the requests that reach the decoders among them, and the part of
    media that reach the encoders."""

    placement: Placement
    of_decoders: float
    of_encoders: float


def _whole(devices: Mapping[tuple[Service, ...], int], part: float) -> bool:
    """Return whether `part` of each number of devices is a whole number, or nearly so."""
    return all(int(number * part + 1e-9) >= NEARLY * number * part for number in devices.values())


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
    if decoders and not costs.on_cpu and _slots(costs, device) < _slots(costs, ["decoder"]):
        return False  # others would take memory that the simulated decoder has for running answers
    busy = sum(number * demand[service] for service, number in here.items())
    needed = decoders * longest_bytes(costs)
    return busy <= FULL * costs.cores and cache_bytes(costs, device) >= needed


def _slots(costs: StageCosts, device: Iterable[Service]) -> int:
    return limits_of(costs, cache_bytes(costs, device)).max_num_seqs


def _check_memory(costs: StageCosts, service: Service) -> None:
    kv = longest_bytes(costs) if service in ("decoder", "monolith") else 0
    if cache_bytes(costs, [service]) < kv or memory_of(costs, service) > costs.memory_bytes:
        needed = memory_of(costs, service) + kv / costs.cache_share
        raise PlanError(
            f"{service} does not fit: weights and one conversation of {costs.decoder.max_model_len} tokens need "
            f"{needed / 1e9:.1f} GB, {costs.device} has {costs.memory_bytes / 1e9:.1f} GB"
        )
