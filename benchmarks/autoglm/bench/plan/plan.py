"""A plan: what the mesh needs for a workload, what one process with everything would need, and the cache."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autoglm.bench.plan.cache_size import lru_entries
from autoglm.bench.plan.costs import StageCosts
from autoglm.bench.plan.engine import limits_of
from autoglm.bench.plan.placement import Service, cache_bytes, memory_of
from autoglm.bench.plan.schema import PlanError
from autoglm.bench.plan.sizing import Kind, Sized, Sizer, gateways
from autoglm.bench.plan.workload import Workload

ENTRY_BYTES = 1024  # of Redis or the gateway for an entry, its key and checksum included
DECODER_SHARE = 0.6  # of a GPU to reserve, where encoders share it
KINDS: tuple[Kind, ...] = ("mesh", "one process")
REPLICAS: tuple[Service, ...] = ("vision", "speech", "decoder", "monolith")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a plan costs; in the unit of the given price, None without one."""

    devices: int
    per_hour: float | None
    per_1000_requests: float | None


@dataclass(frozen=True, slots=True)
class CacheSize:
    """What an embedding cache holds to answer the wanted share of media."""

    kind: str
    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Option:
    """One way to serve a workload; `refused` says why there is none, where `sized` is None."""

    kind: Kind
    sized: Sized | None
    cost: Cost | None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that was found."""

    workload: Workload
    costs: StageCosts
    options: Sequence[Option]
    gateways: int
    cache: Sequence[CacheSize]
    requests: int
    seed: int

    @property
    def mesh(self) -> Option:
        """Return the plan for separate services."""
        return self.options[0]

    def serve_config(self) -> dict[str, Any]:
        """Return what to set in deploy/serve.yaml, by application."""
        if self.mesh.sized is None:
            return {}
        sized, shares = self.mesh.sized, self._gpu_shares(self.mesh.sized)
        config: dict[str, Any] = {}
        for name, count in sorted(sized.replicas.items()):
            args: dict[str, Any] = {} if self.costs.on_cpu else {"num_gpus": shares[name]}
            if name == "decoder":
                args |= self._decoder_args(sized)
            config[name] = {"args": args, "deployments": [{"name": name.title(), "num_replicas": count}]}
        return config

    def _decoder_args(self, sized: Sized) -> dict[str, Any]:
        homes = (device for device in sized.placement.devices if "decoder" in device)
        limits = [limits_of(self.costs, cache_bytes(self.costs, home) // home.count("decoder")) for home in homes]
        slots = min(each.max_num_seqs for each in limits)
        return {"max_num_seqs": slots, "max_model_len": self.costs.decoder.max_model_len}

    def _gpu_shares(self, sized: Sized) -> dict[Service, float]:
        """Return the part of a GPU to reserve for a replica: two decoders never fit on one, and as many encoders do as
        the plan puts there."""
        devices = sized.placement.devices
        shared = any("decoder" in device and len(device) > 1 for device in devices)
        shares: dict[Service, float] = {"decoder": DECODER_SHARE if shared else 1.0}
        for name in sized.replicas:
            if name != "decoder":
                rest = (_rest(device) for device in devices if name in device)
                shares[name] = int(100 * min(rest)) / 100
        return shares

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return {
            "workload": self.workload.model_dump(),
            "device": self.costs.device,
            "options": [_option(option) for option in self.options],
            "gateways": self.gateways,
            "cache": [asdict(each) for each in self.cache],
            "serve_config": self.serve_config(),
            "simulated_requests": self.requests,
            "seed": self.seed,
        }

    def memory(self, sized: Sized) -> list[Mapping[str, Any]]:
        """Return for each kind of device how many there are, what they run, and the bytes that this takes."""
        loads = {services: sized.placement.devices.count(services) for services in sized.placement.devices}
        return [
            {
                "devices": count,
                "services": list(services),
                "weights_and_runtime_bytes": sum(memory_of(self.costs, service) for service in services),
                "kv_cache_bytes": cache_bytes(self.costs, services) if _has_decoder(services) else 0,
                "memory_bytes": self.costs.memory_bytes,
            }
            for services, count in loads.items()
        ]


def _rest(device: Sequence[Service]) -> float:
    """Return the part of a GPU that each encoder on it gets."""
    left = 1 - DECODER_SHARE if "decoder" in device else 1.0
    return left / sum(name != "decoder" for name in device)


def _has_decoder(services: Sequence[Service]) -> bool:
    return "decoder" in services or "monolith" in services


def _option(option: Option) -> dict[str, Any]:
    if option.sized is None or option.cost is None:
        return {"kind": option.kind, "refused": option.refused}
    sized = option.sized
    return {
        "kind": option.kind,
        "replicas": dict(sized.replicas),
        "needed": dict(sized.needed),
        "placement": [list(device) for device in sized.placement.devices],
        "expected": asdict(sized.expected),
        **asdict(option.cost),
    }


def make_plan(sizer: Sizer, price: float | None) -> Plan:
    """Return the plan for the sizer's workload; `price` is that of a device for an hour.

    Raises PlanError if separate services cannot meet the SLO.
    """
    options = []
    for kind in KINDS:
        try:
            sized = sizer.size(kind)
        except PlanError as error:
            if kind == "mesh":
                raise
            options.append(Option(kind, None, None, str(error)))
        else:
            options.append(Option(kind, sized, _cost(sized, price, sizer.workload.request_rate)))
    workload, costs = sizer.workload, sizer.costs
    return Plan(
        workload, costs, options, gateways(workload, costs), cache_sizes(workload, costs), sizer.requests, sizer.seed
    )


def _cost(sized: Sized, price: float | None, rate: float) -> Cost:
    devices = len(sized.placement.devices)
    if price is None:
        return Cost(devices, None, None)
    return Cost(devices, round(devices * price, 4), round(devices * price / (rate * 3.6), 6))


def cache_sizes(workload: Workload, costs: StageCosts) -> list[CacheSize]:
    """Return what an LRU cache of embeddings needs for the wanted hit ratio, by modality; nothing without one."""
    wanted = workload.cache
    if not wanted.hit_ratio:
        return []
    recordings = [each.audio_seconds for each in workload.classes if each.audio_seconds]
    sizes = []
    if any(each.images for each in workload.classes):
        sizes.append(("image", wanted.distinct_images, costs.vision.embedding_bytes_per_unit))
    if recordings:
        seconds = sum(recordings) / len(recordings)
        sizes.append(("audio", wanted.distinct_recordings, round(seconds * costs.speech.embedding_bytes_per_unit)))
    found = []
    for kind, distinct, size in sizes:
        entries = lru_entries(distinct, wanted.zipf_exponent, wanted.hit_ratio)
        found.append(CacheSize(kind, entries, entries * (size + ENTRY_BYTES)))
    return found
